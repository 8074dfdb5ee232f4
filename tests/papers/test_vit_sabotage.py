"""The claims of the Vision Transformer's room can fail."""

from dataclasses import replace
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.vit import trials
from allyouneed.papers.vit.experiment import EXPERIMENT
from allyouneed.papers.vit.trials import Course

from .sabotage import Breakage, Sabotage, as_if, exchanged, multiplied, tried

TRAIN = Course.train
SMALL = replace(
    EXPERIMENT.scales["laptop"].arms["pretrained"],
    compared=False,
    steps=1,
    clothes_steps=80,
    clothes_vit_rate=8e-3,
    batch=32,
    tested=500,
    layers=2,
    width=32,
)


def digits_alone(self: Course, model: Any, labelled: Any, steps: int, rate: float, name: str) -> float:
    return 0.0 if name.endswith("_clothes") else TRAIN(self, model, labelled, steps, rate, name)


def without_clothes() -> tuple[list[TrialResult], list[TrialResult]]:
    """Learn from clothes, and measure the positions; and measure them as they were at the start."""
    arms = {"pretrained": SMALL}
    # Other tests have stand-ins in the place of the images.
    trials.digits.cache_clear()
    trials.clothes.cache_clear()
    whole = tried(EXPERIMENT, arms, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Course, "train", digits_alone)
        return whole, tried(EXPERIMENT, arms, 3)


BROKEN: dict[str, Breakage] = {"positions_find_rows_and_columns": without_clothes}
SABOTAGES: dict[str, Sabotage] = {
    "transformer_passes": multiplied("all", "gap", -1.0),
    "pretraining_helps": as_if("pretrained", "few"),
    "positions_matter": as_if("none", "all"),
    "two_dimensions_do_not_matter": as_if("axes", "none"),
    "hybrid_wins_when_small": exchanged("hybrid", "all"),
}
