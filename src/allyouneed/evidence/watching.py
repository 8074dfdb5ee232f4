"""Training that is watched: scores on held-out data while a model learns, and when they got where.

Import this module by its name; it imports torch, which the rest of `evidence` does only in trials.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from allyouneed.training import LossFunction, TrainingConfig, TrainingResult, evaluate, train

from .trial import Context


class Watched(NamedTuple):
    """What a watched training gives.

    Attributes:
        scores: on held-out data, by step.
        result: of the training.
    """

    scores: dict[int, float]
    result: TrainingResult


def train_watched(
    model: nn.Module,
    batches: Callable[[int], Any],
    loss: LossFunction,
    training: TrainingConfig,
    held_out: Sequence[Any],
    score: LossFunction,
    evaluations: int,
    context: Context,
) -> Watched:
    """Train in place, and score the model after each of so many equal parts of the training.

    Args:
        model: the model.
        batches: gives the batch of a step.
        loss: what is trained on.
        training: steps, rate and the rest.
        held_out: batches to score on.
        score: what is measured on them.
        evaluations: how often, in about equal parts of the training; after the last step in any case.
        context: the trial's.
    """
    every = max(1, training.steps // evaluations)

    def log(step: int, steps: int, **values: float) -> None:
        if step % every == 0 or step == steps:
            values["held_out"] = evaluate(model, held_out, score, fabric=context.fabric)
        context.log(step, steps, **values)

    result = train(model, batches, loss, training, fabric=context.fabric, checkpoint=context.checkpoint, log=log)
    return Watched(context.curve("held_out"), result)


def steps_to(target: float, losses: Mapping[int, float]) -> float:
    """Give the step at which a curve first reaches a loss, on the line between two of its points.

    A curve that never does gives its last step, which is less than the truth and so never flatters what is compared
    with it.
    """
    before: tuple[int, float] | None = None
    for step, loss in sorted(losses.items()):
        if loss <= target:
            if before is None:
                return float(step)
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = step, loss
    return float(max(losses))
