"""The training loop."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from allyouneed.nn import linear_cross_entropy

from .checkpoint import Checkpoint, CheckpointError
from .schedules import Constant, Schedule

Batch = Any
"""A tensor, or a tuple, list or mapping of tensors, whose first axes are the batch."""


class Loss(NamedTuple):
    """A loss as a sum and the number of targets it is summed over, so that parts of a batch add up to the whole."""

    total: Float[Tensor, ""]
    targets: Int[Tensor, ""] | int


LossFunction = Callable[[Any, Batch], Loss]


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train, with AdamW (Loshchilov & Hutter 2019).

    Attributes:
        steps: optimiser steps.
        learning_rate: at the peak of the schedule.
        schedule: multiplies the learning rate.
        weight_decay: of matrices; vectors (biases, gains of norms) are not decayed.
        betas: decay rates of the two moments.
        clip: the largest norm of the gradient of all weights together; None does not clip.
        accumulate: parts into which a batch is split, one after the other, to fit memory; the step is the same.
    """

    steps: int
    learning_rate: float
    schedule: Schedule = field(default_factory=Constant)
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}: it must be positive, or None")


@dataclass(frozen=True)
class TrainingResult:
    """What a training took.

    Attributes:
        losses: the mean loss of each step's batch, before that step.
        step_seconds: the time of each step; evaluation and checkpoints are not in it.
    """

    losses: Float[Tensor, " steps"]
    step_seconds: Float[Tensor, " steps"]

    @property
    def seconds(self) -> float:
        """Time of all steps together."""
        return float(self.step_seconds.sum())


class _Objective(nn.Module):
    """Model and loss as one module, so that precision and data parallelism cover both."""

    def __init__(self, model: nn.Module, loss: LossFunction):
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        total, targets = self.loss(self.model, batch)
        return total, targets


def train(
    model: nn.Module,
    batches: Callable[[int], Batch],
    loss: LossFunction,
    config: TrainingConfig,
    *,
    fabric: Fabric | None = None,
    checkpoint: Checkpoint | None = None,
    log: Callable[..., None] | None = None,
) -> TrainingResult:
    """Train the model in place.

    A batch is a function of its step, so a training that is continued from a checkpoint sees what it would have seen,
    and on a CPU ends in the same weights, bit for bit, as one that was never interrupted.

    With several processes each takes its share of every batch's rows, and the step is that of the whole batch. The
    first one writes checkpoints and logs; the others draw dropout from generators of their own.

    Args:
        model: its weights are changed.
        batches: gives the batch of each step, counted from 0.
        loss: gives the summed loss of a batch and the number of its targets.
        config: how to train.
        fabric: device, precision and parallelism; a CPU in 32 bits where None.
        checkpoint: where the state is kept and from where it is continued.
        log: called with `step`, `steps`, `loss` and `learning_rate` after each step.

    Raises:
        DivergedError: a loss or a gradient that is not finite.
        CheckpointError: as `Checkpoint` says, or a checkpoint of a longer training.
        ValueError: a batch without targets, or of fewer rows than parts or processes.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas, fused=True
    )
    objective, optimizer = fabric.setup(_Objective(model, loss), optimizer)
    losses, step_seconds = torch.zeros(config.steps), torch.zeros(config.steps)
    start = 0
    if checkpoint is not None and (progress := checkpoint.load(model, optimizer.optimizer)) is not None:
        start = progress["step"]
        if start > config.steps:
            raise CheckpointError(
                f"{checkpoint.path} is at step {start}, beyond the {config.steps} of this training. "
                "Delete it to start anew"
            )
        losses[:start], step_seconds[:start] = progress["losses"], progress["step_seconds"]
    if fabric.global_rank:
        # The random state is that of the first process, from which no other may draw the same dropout.
        torch.manual_seed(torch.initial_seed() + start + fabric.global_rank)

    def save(step: int) -> None:
        assert checkpoint is not None
        progress = {"step": step, "losses": losses[:step], "step_seconds": step_seconds[:step]}
        checkpoint.save(model, optimizer.optimizer, progress)

    model.train()
    for step in range(start, config.steps):
        began = time.perf_counter()
        learning_rate = config.learning_rate * config.schedule(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batch = batches(step)
        if fabric.world_size > 1:
            batch = split_batch(batch, fabric.world_size)[fabric.global_rank]
        batch = fabric.to_device(batch)
        losses[step] = _step(objective, optimizer, batch, config, fabric)
        step_seconds[step] = time.perf_counter() - began
        if log is not None and fabric.is_global_zero:
            log(step=step + 1, steps=config.steps, loss=float(losses[step]), learning_rate=learning_rate)
        if checkpoint is not None and fabric.is_global_zero and checkpoint.due:
            save(step + 1)
    return TrainingResult(losses, step_seconds)


def _step(objective: Any, optimizer: Any, batch: Batch, config: TrainingConfig, fabric: Fabric) -> float:
    """Take one optimiser step; return the batch's mean loss."""
    optimizer.zero_grad()
    parts = split_batch(batch, config.accumulate)
    total, count = 0.0, 0
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with contextlib.nullcontext() if last else fabric.no_backward_sync(objective):
            part_total, part_count = objective(part)
            fabric.backward(part_total)
        total, count = total + part_total.detach(), count + part_count
    if fabric.world_size > 1:
        sums = torch.tensor([float(total), float(count)], dtype=torch.float64, device=fabric.device)
        total, count = fabric.all_reduce(sums, reduce_op="sum")
    if float(count) == 0:
        raise ValueError("a batch has no targets, so its loss has no mean")
    mean = float(total) / float(count)
    if not math.isfinite(mean):
        raise DivergedError(f"the loss is {mean}: try a lower learning rate than {config.learning_rate}")
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    for gradient in gradients:
        # Over several processes they are means of the sums over each one's share.
        gradient.mul_(fabric.world_size / float(count))
    largest = math.inf if config.clip is None else config.clip
    norm = fabric.clip_gradients(objective, optimizer, max_norm=largest, error_if_nonfinite=False)
    if norm is not None and not math.isfinite(norm):
        raise DivergedError(
            f"the gradient's norm is {float(norm)}: try a lower learning rate than {config.learning_rate}"
        )
    optimizer.step()
    return mean


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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave vectors (biases, gains of norms) alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


@runtime_checkable
class LanguageModel(Protocol):
    """What foretells tokens from those before them: every `Decoder`, and models that are built otherwise."""

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """What maps vectors to logits."""
        ...

    def hidden(self, tokens: Int[Tensor, "batch length"], /) -> Float[Tensor, "batch length width"]:
        """Give the vectors from which logits come."""
        ...


def next_token_loss(model: LanguageModel, batch: Int[Tensor, "batch window"]) -> Loss:
    """Sum the cross-entropies, in nats, of each token given those before it in its row."""
    hidden = model.hidden(batch[:, :-1])
    return Loss(linear_cross_entropy(hidden, model.output_weight, batch[:, 1:]), batch[:, 1:].numel())


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], loss: LossFunction, *, fabric: Fabric | None = None) -> float:
    """Give the mean loss a target over all batches, with dropout off.

    Raises:
        ValueError: there are no batches.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    was_training = model.training
    model.to(fabric.device).eval()
    total, count = 0.0, 0
    try:
        for batch in batches:
            with fabric.autocast():
                part_total, part_count = loss(model, fabric.to_device(batch))
            total, count = total + float(part_total), count + int(part_count)
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("there is nothing to evaluate: no batch has a target")
    return total / count
