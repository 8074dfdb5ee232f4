"""Scores while a model learns, also where the trial was interrupted, and the step at which they reach a loss."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from allyouneed.evidence import Context, Task
from allyouneed.evidence.watching import steps_to, train_watched
from allyouneed.training import Loss, TrainingConfig


def test_steps_to_a_loss():
    losses = {10: 3.0, 20: 2.0, 30: 2.2, 40: 1.0}
    assert steps_to(2.5, losses) == 15
    assert steps_to(2.0, losses) == 20
    assert steps_to(1.6, losses) == pytest.approx(35)
    assert steps_to(3.5, losses) == 10
    assert steps_to(0.5, losses) == 40
    assert steps_to(2.0, {10: 3.0, 20: 1.0}) == 15
    assert steps_to(2.0, {10: 1.5, 20: 1.0}) == 10
    assert steps_to(0.5, {10: 1.5, 20: 1.0}) == 20


def squares(model: nn.Module, batch: Tensor) -> Loss:
    return Loss(model(batch).square().sum(), len(batch))


def test_a_model_is_scored_as_often_as_asked_and_at_the_end(tmp_path: Path) -> None:
    context = Context(Task(lambda config, context: {}, "one", 0, None, tmp_path))
    model = nn.Linear(3, 1)
    # What an interrupted attempt logged counts, but for what is logged again.
    context.log(1, 7, held_out=123.0)
    context.log(3, 7, held_out=456.0)
    scores, result = train_watched(
        model,
        lambda step: torch.ones(2, 3),
        squares,
        TrainingConfig(7, 0.01),
        [torch.ones(2, 3)],
        squares,
        evaluations=2,
        context=context,
    )
    context.close()
    assert list(scores) == [1, 3, 6, 7] and scores[1] == 123.0
    assert scores[3] > scores[6] > scores[7] == pytest.approx(float(squares(model, torch.ones(1, 3)).total.detach()))
    assert len(result.losses) == 7
