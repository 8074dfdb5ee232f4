"""How each claim on learning from examples is broken, and its verdict with it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from jaxtyping import Int64
from torch import Tensor

from allyouneed.evidence import TrialResult
from allyouneed.papers.gpt3.experiment import EXPERIMENT, SHOTS
from allyouneed.papers.gpt3.generated import DIGITS, LETTERS, Mappings
from allyouneed.papers.gpt3.trials import FewShotConfig

from .sabotage import Breakage, Sabotage, exchanged, tried


def in_reverse(trials: list[TrialResult]) -> list[TrialResult]:
    """Let what was measured with many examples count for few."""
    arms = dict(zip(SHOTS, reversed(SHOTS), strict=True))
    return [dataclasses.replace(trial, arm=arms.get(trial.arm, trial.arm)) for trial in trials]


def with_digits_at_random() -> tuple[list[TrialResult], list[TrialResult]]:
    """Train and try one small model on mappings of two letters, and on documents with digits at random."""
    small = FewShotConfig(
        kind="mappings", width=16, heads=1, letters=2, documents=24, steps=100, learning_rate=8e-3, tested=500
    )
    arms = {"mappings_16": small}
    whole = tried(EXPERIMENT, arms, seeds=3)
    documents = Mappings.documents

    def shuffled(
        self: Mappings, count: int, generator: np.random.Generator, **options: Any
    ) -> Int64[Tensor, "rows tokens"]:
        rows = documents(self, count, generator, **options)
        first = 1 + LETTERS
        rows[:, 2::2] = rows.new_tensor(generator.integers(first, first + DIGITS, size=(count, self.examples)))
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mappings, "documents", shuffled)
        return whole, tried(EXPERIMENT, arms, seeds=3)


SABOTAGES: dict[str, Sabotage] = {
    "question_types_rise": in_reverse,
    "larger_learn_more_from_examples": exchanged("mappings_1", "mappings_16"),
}
BROKEN: dict[str, Breakage] = {"invented_tasks_are_learned": with_digits_at_random}
