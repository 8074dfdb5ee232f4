"""One step of a training: gradients of a batch's parts, clipping, the optimiser, and what may go wrong."""

import contextlib
import math
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.fsdp import FSDPStrategy
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .config import TrainingConfig
from .losses import Batch, LossFunction
from .names import listed
from .scaling import LossScaling
from .weights import Weights, frozen_weights


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer a number."""


class _Objective(nn.Module):
    """Model and loss as one module, so that precision and data parallelism cover both."""

    def __init__(self, model: nn.Module, loss: LossFunction):
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        found = self.loss(self.model, batch)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                f"the loss gave a {type(found).__name__}: it must give a Loss, the sum of a batch's losses and "
                "the number of its targets"
            )
        return found


class Stepper:
    """Takes the steps of a training.

    Args:
        model: its weights are changed.
        loss: gives the summed loss of a batch and the number of its targets.
        config: how to train.
        fabric: device, precision and parallelism.

    Attributes:
        optimizer: AdamW, over the model's weights or 32-bit copies of them.
        weights: those.
        scaling: of the loss, where gradients are in float16.
        frozen: names of what the training leaves as it is.
        unused: names of what had no gradient in any step yet.
        skipped: the steps, counted from 0, whose gradient overflowed in float16.

    Raises:
        ValueError: nothing to train, or weights that cannot be; the message names them.
    """

    def __init__(self, model: nn.Module, loss: LossFunction, config: TrainingConfig, fabric: Fabric):
        self.config = config
        self.fabric = fabric
        self.frozen = frozen_weights(model)
        self.objective: Any = fabric.setup_module(_Objective(model, loss))
        self.weights = Weights(model)
        if self.weights.masters and isinstance(fabric.strategy, FSDPStrategy):
            raise ValueError(
                "weights in 16 bits cannot be trained under FSDP, where their 32-bit copies would not be sharded: load "
                "the model with dtype=torch.float32 and give Fabric precision 'bf16-mixed'"
            )
        self._check_precision()
        self.scaling = LossScaling(fabric, self.weights.need_scaling)
        # The fused kernel wants to unscale gradients itself, and they are clipped before it is called.
        fused = not self.scaling.active
        groups = self.weights.groups(config.weight_decay)
        self.optimizer: Any = fabric.setup_optimizers(
            torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
        )
        self.unused = tuple(self.weights.trained)
        self.skipped: list[int] = []

    def take(self, step: int, batch: Batch) -> float:
        """Take an optimiser step, counted from 0; return the batch's mean loss before it.

        Raises:
            DivergedError: a loss or a gradient that is not finite; no weight was changed.
            ValueError: a batch without targets, or of fewer rows than parts or processes.
        """
        config, fabric = self.config, self.fabric
        learning_rate = config.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if fabric.world_size > 1:
            batch = split_batch(batch, fabric.world_size)[fabric.global_rank]
        total, count, divisor = self._gradients(fabric.to_device(batch))
        if float(count) == 0:
            raise ValueError(f"the batch of step {step + 1} has no targets, so its loss has no mean")
        mean = float(total) / float(count)
        if not math.isfinite(mean):
            raise DivergedError(self._diverged(step, f"the loss is {mean}"))
        self._note_unused()
        updated = self.weights.updated.values()
        for gradient in [p.grad for p in updated if p.grad is not None]:
            # Over several processes they are means of the sums over each one's share.
            gradient.mul_(fabric.world_size * divisor / float(count))
        self.scaling.unscale(self.optimizer)
        largest = math.inf if config.clip is None else config.clip
        found = fabric.clip_gradients(self.objective, self.optimizer, max_norm=largest, error_if_nonfinite=False)
        norm = 0.0 if found is None else float(found)
        finite = math.isfinite(norm)
        if not finite and not self.scaling.active:
            raise DivergedError(self._diverged(step, f"the gradient's norm is {norm}"))
        self.scaling.step(self.optimizer)
        if finite:
            self.weights.give_back()
            return mean
        self.skipped.append(step)
        if self.scaling.factor < 1:
            what = "the gradient is not finite even where the loss is not scaled up"
            raise DivergedError(self._diverged(step, what))
        return mean

    def state(self) -> dict[str, Any]:
        """Give what the next step depends on beside model, optimiser and random states, for a checkpoint."""
        return {"skipped": list(self.skipped)} | self.weights.state() | self.scaling.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.skipped = list(state["skipped"])
        self.weights.restore(state)
        self.scaling.restore(state)

    def _check_precision(self) -> None:
        """Refuse weights in the one 16-bit type under a precision that computes in the other."""
        kind = self.fabric.device.type
        with self.fabric.autocast():
            computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        other = [name for name in self.weights.masters if self.weights.trained[name].dtype != computed]
        if computed is not None and other:
            raise ValueError(
                f"{listed(other)} are in {self.weights.trained[other[0]].dtype}, and the precision of this Fabric "
                f"computes in {computed}: load the model with dtype=torch.float32, or give Fabric no mixed precision"
            )

    def _gradients(self, batch: Batch) -> tuple[Any, Any, float]:
        """Sum the gradients of a batch's parts; return its loss, its targets, and what gradients are divided by."""
        fabric = self.fabric
        self.optimizer.zero_grad()
        parts = split_batch(batch, self.config.accumulate)
        total, count, divisor = 0.0, 0, 1.0
        for index, part in enumerate(parts):
            # Copies in 32 bits take each part's gradient, which must be that of all processes by then.
            synced = index == len(parts) - 1 or self.weights.masters
            with contextlib.nullcontext() if synced else fabric.no_backward_sync(self.objective):
                part_total, part_count = self.objective(part)
                scaled = part_total
                if self.scaling.active:
                    # A mean or nearly so: the gradient of a sum over thousands of targets would overflow.
                    divisor = divisor if index else self._divisor(part_count)
                    scaled = self.scaling.scaled(part_total.float() / divisor)
                fabric.backward(scaled)
            self.weights.take_gradients()
            total, count = total + part_total.detach(), count + part_count
        if fabric.world_size > 1:
            sums = torch.tensor([float(total), float(count)], dtype=torch.float64, device=fabric.device)
            total, count = fabric.all_reduce(sums, reduce_op="sum")
        return total, count, divisor

    def _divisor(self, targets: Tensor | int) -> float:
        """Give the targets of a part, in the mean over processes, which must agree on it; 1 where it has none."""
        mean: Any = float(targets)
        if self.fabric.world_size > 1:
            mean = self.fabric.all_reduce(torch.tensor(mean, device=self.fabric.device), reduce_op="mean")
        return max(1.0, float(mean))

    def _note_unused(self) -> None:
        """Tell once of weights that the first step had no gradient for, and forget those that get one later."""
        if not self.unused:
            return
        first = len(self.unused) == len(self.weights.trained)
        updated = self.weights.updated
        self.unused = tuple(name for name in self.unused if updated[name].grad is None)
        if first and self.unused:
            warnings.warn(
                f"the loss of the first step does not depend on {len(self.unused)} of {len(updated)} weights, which "
                f"stay as they are unless a later one does: {listed(self.unused)}",
                stacklevel=4,
            )

    def _diverged(self, step: int, what: str) -> str:
        return (
            f"{what} at step {step + 1} of {self.config.steps}: try a lower learning rate than "
            f"{self.config.learning_rate}"
        )


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split every tensor of a batch along its first axis into as many parts, as even as can be.

    Raises:
        ValueError: fewer rows than parts, or tensors of different numbers of rows.
    """
    tensors, structure = pytree.tree_flatten(batch)
    rows = {tensor.shape[0] for tensor in tensors}
    if len(rows) != 1 or min(rows) < parts:
        raise ValueError(f"a batch of {sorted(rows)} rows cannot be split into {parts} parts")
    pieces = zip(*(tensor.tensor_split(parts) for tensor in tensors), strict=True)
    return [pytree.tree_unflatten(list(piece), structure) for piece in pieces]
