"""The claims of ALiBi's room can fail."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.nn import PositionScheme
from allyouneed.papers.alibi import experiment
from allyouneed.papers.alibi.experiment import EXPERIMENT

from .sabotage import Breakage, Sabotage, as_if, exchanged, tried

# Long enough for the positions to be relied on, and no longer.
SMALL = {"length": 8, "width": 32, "layers": 1, "heads": 2, "step_tokens": 256, "steps": 200, "evaluated_tokens": 2048}
ARMS = {arm: replace(config, learning_rate=1.6e-2, **SMALL) for arm, config in EXPERIMENT.scales["laptop"].arms.items()}
MEASURED = {arm: replace(ARMS[arm], steps=1) for arm in ("alibi", "sinusoidal_double")}


def no_positions(*_: int) -> PositionScheme:
    return PositionScheme()


def both(arms: Mapping[str, Any], name: str, part: Any) -> tuple[list[TrialResult], list[TrialResult]]:
    """Run arms whole, and with a part of the experiment replaced."""
    whole = tried(EXPERIMENT, arms, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, name, part)
        return whole, tried(EXPERIMENT, arms, 3)


BROKEN: dict[str, Breakage] = {
    "sinusoidal_rises": lambda: both({"sinusoidal": ARMS["sinusoidal"]}, "SinusoidalPositions", no_positions),
    "rotary_rises": lambda: both({"rotary": ARMS["rotary"]}, "RotaryPositions", no_positions),
    "half_the_length_less_memory": lambda: both(MEASURED, "sdpa_kernel", lambda _: nullcontext()),
}
SABOTAGES: dict[str, Sabotage] = {
    # Trained on some tens of tokens, ALiBi's perplexity rises by 2 % too: nothing small enough for a test shows this.
    "alibi_does_not_rise": as_if("alibi", "sinusoidal"),
    "half_the_length": as_if("alibi", "sinusoidal"),
    "half_the_length_faster": as_if("alibi", "sinusoidal_double"),
    "no_price_at_the_length": exchanged("alibi", "rotary"),
}
