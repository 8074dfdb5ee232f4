"""The training loop."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import nn

from .checkpoint import Checkpoint, CheckpointError
from .config import TrainingConfig
from .losses import Batch, LossFunction
from .stepping import Stepper


@dataclass(frozen=True)
class TrainingResult:
    """What a training took.

    Attributes:
        losses: the mean loss of each step's batch, before that step.
        step_seconds: the time of each step; evaluation and checkpoints are not in it.
        skipped: steps, counted from 0, that changed nothing because their gradient overflowed in float16.
        frozen: names of what was left as it is: frozen parameters and quantised layers.
        unused: names of weights that no step had a gradient for, since the process began.
    """

    losses: Float[torch.Tensor, " steps"]
    step_seconds: Float[torch.Tensor, " steps"]
    skipped: tuple[int, ...] = ()
    frozen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all steps together."""
        return float(self.step_seconds.sum())


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

    Weights in 16 bits are updated in 32-bit copies, which the checkpoint holds too. Gradients in float16 (precision
    "16-mixed", or weights in float16) are scaled; a step in which they overflow is skipped, its batch and its place in
    the schedule with it. What is frozen stays as it is, and weights that the loss does not depend on are named in a
    warning.

    A training that is continued goes on with the settings it is given now: other steps, another learning rate,
    schedule, weight decay, other betas, clipping or parts than before apply from there on, to the same moments.

    Args:
        model: its weights are changed.
        batches: gives the batch of each step, counted from 0.
        loss: gives the summed loss of a batch and the number of its targets.
        config: how to train.
        fabric: device, precision and parallelism; a CPU in 32 bits where None.
        checkpoint: where the state is kept and from where it is continued; it is saved now and then, and at the end.
        log: called with `step`, `steps`, `loss` and `learning_rate` after each step.

    Raises:
        DivergedError: a loss or a gradient that is not finite.
        CheckpointError: as `Checkpoint` says (weights in another precision or of other names among it), or a
            checkpoint of a longer training.
        ValueError: a batch without targets, or of fewer rows than parts or processes; a schedule that gives what is no
            learning rate; a model with nothing to train, or with quantised layers while nothing is frozen; an argument
            of another kind.
    """
    _check(model, batches, loss, config, checkpoint)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    stepper = Stepper(model, loss, config, fabric)
    losses, step_seconds = torch.zeros(config.steps), torch.zeros(config.steps)
    start = 0
    if checkpoint is not None and (progress := checkpoint.load(model, stepper.optimizer.optimizer)) is not None:
        start = progress["step"]
        if start > config.steps:
            raise CheckpointError(
                f"{checkpoint.path} is at step {start}, beyond the {config.steps} of this training. "
                "Delete it to start anew"
            )
        losses[:start], step_seconds[:start] = progress["losses"], progress["step_seconds"]
        stepper.restore(progress)
    if fabric.global_rank:
        # The random state is that of the first process, from which no other may draw the same dropout.
        torch.manual_seed(torch.initial_seed() + start + fabric.global_rank)

    model.train()
    for step in range(start, config.steps):
        began = time.perf_counter()
        batch = batches(step)
        if batch is None:
            raise ValueError(f"batches gave None for step {step}: it must give a batch for each step")
        losses[step] = stepper.take(step, batch)
        step_seconds[step] = time.perf_counter() - began
        done = step + 1
        if log is not None and fabric.is_global_zero:
            rate = config.learning_rate_at(step)
            log(step=done, steps=config.steps, loss=float(losses[step]), learning_rate=rate)
        if checkpoint is not None and fabric.is_global_zero and (checkpoint.due or done == config.steps):
            progress = {"step": done, "losses": losses[:done], "step_seconds": step_seconds[:done]} | stepper.state()
            checkpoint.save(model, stepper.optimizer.optimizer, progress)
    unused = stepper.unused if start < config.steps else ()
    return TrainingResult(losses, step_seconds, tuple(stepper.skipped), stepper.frozen, unused)


def _check(model: object, batches: object, loss: object, config: object, checkpoint: object) -> None:
    """Say what an argument must be, before anything is computed."""
    wanted = (
        ("model", model, isinstance(model, nn.Module), "a torch module"),
        ("batches", batches, callable(batches), "a function that gives the batch of a step, as lambda step: …"),
        ("loss", loss, callable(loss), "a function of model and batch that gives a Loss"),
        ("config", config, isinstance(config, TrainingConfig), "a TrainingConfig"),
        ("checkpoint", checkpoint, isinstance(checkpoint, Checkpoint | None), "a Checkpoint, as Checkpoint(path)"),
    )
    for name, value, right, what in wanted:
        if not right:
            raise ValueError(f"{name} is {value!r:.60}; it must be {what}")


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
