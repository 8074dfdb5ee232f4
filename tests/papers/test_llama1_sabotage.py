"""The claims of LLaMA's room can fail."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.llama1.experiment import EXPERIMENT
from allyouneed.papers.llama1.trials import Llama1Config

from .sabotage import Breakage, Sabotage, exchanged, tried

SMALL: dict[str, Any] = {"layers": 1, "head_width": 6, "length": 32, "step_tokens": 512, "evaluated_tokens": 6144}
ARMS: Mapping[str, Llama1Config] = {
    arm: replace(config, **SMALL) for arm, config in EXPERIMENT.scales["laptop"].arms.items()
}


def both(arms: Mapping[str, Any], holder: Any, name: str, part: Any) -> tuple[list[TrialResult], list[TrialResult]]:
    """Run arms whole, and with a part of the room replaced."""
    whole = tried(EXPERIMENT, arms, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, part)
        return whole, tried(EXPERIMENT, arms, 3)


def spending(compute: float, *arms: str) -> dict[str, Llama1Config]:
    """Give small arms with so much compute, and those that have half of it with half of that."""
    return {arm: replace(ARMS[arm], compute=compute / 2 if arm.endswith("half") else compute) for arm in arms}


BROKEN: dict[str, Breakage] = {
    "smaller_passes_larger": lambda: both(
        spending(0.006, "medium_whole", "large_whole"), Llama1Config, "steps", property(lambda _: 48)
    ),
    "smallest_goes_on_improving": lambda: both(
        spending(0.0008, "small_half", "small_whole"), Llama1Config, "steps", property(lambda _: 60)
    ),
}
SABOTAGES: dict[str, Sabotage] = {
    # In trials short enough for a test, LLaMA leads without its rotation too: by less, and still past the margin.
    "block_beats_gpt2": exchanged("large_whole", "gpt2_whole"),
    "smallest_is_past_its_point": exchanged("medium_half", "small_half"),
}
