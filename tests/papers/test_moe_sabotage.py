"""The claims of the mixture of experts' room can fail."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.moe import trials
from allyouneed.papers.moe.experiment import EXPERIMENT, EXPERTS

from .sabotage import Breakage, Sabotage, as_if, exchanged, in_turn, multiplied, tried

SMALL = {"width": 16, "step_tokens": 256, "steps": 120, "length": 16}
ARMS = {
    arm: replace(EXPERIMENT.scales["smoke"].arms[arm], learning_rate=6.4e-2, **SMALL)
    for arm in ("moe_32", "moe_32_unbalanced")
}


@cache
def without_losses() -> tuple[list[TrialResult], list[TrialResult]]:
    """Train without what keeps the experts in balance, whatever its weights."""
    whole = tried(EXPERIMENT, ARMS, 3)

    def nothing(*_: Any) -> float:
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "balancing_loss", nothing)
        return whole, tried(EXPERIMENT, ARMS, 3)


BROKEN: dict[str, Breakage] = {
    "losses_even_out_importance": without_losses,
    "balanced_load_is_even": without_losses,
}
SABOTAGES: dict[str, Sabotage] = {
    "more_experts_lower_perplexity": in_turn(*(as_if(f"moe_{experts}", "moe_4") for experts in EXPERTS[1:])),
    "mixture_beats_dense": exchanged("moe_32", "dense"),
    "losses_even_out_load": as_if("moe_32_unbalanced", "moe_32"),
    "balance_lowers_perplexity": exchanged("moe_32", "moe_32_unbalanced"),
    "more_experts_hardly_slower": multiplied("moe_32", "step_seconds", 8.0),
}
