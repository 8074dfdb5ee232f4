"""The claims of the room about experts in transformers can fail."""

from dataclasses import replace
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.nn import sort_routes
from allyouneed.papers.moe_explained import expert_capacity, routing, trials
from allyouneed.papers.moe_explained.experiment import EXPERIMENT

from .sabotage import Breakage, Sabotage, as_if, exchanged, multiplied, tried

SMOKE = EXPERIMENT.scales["smoke"].arms


def with_and_without(arms: dict[str, Any], module: Any, name: str, broken: Any, seeds: int = 3) -> Breakage:
    """Run small trials with a part of the room as it is, and with another in its place."""

    def breakage() -> tuple[list[TrialResult], list[TrialResult]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trials, "STATISTICS_BATCHES", 8)
            whole = tried(EXPERIMENT, arms, seeds)
            patch.setattr(module, name, broken)
            return whole, tried(EXPERIMENT, arms, seeds)

    return breakage


def small(arms: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    return {arm: replace(SMOKE[arm], **{"width": 16, "step_tokens": 128} | changes) for arm in arms}


def without_z_loss(model: Any, balance: float, z: float) -> Any:
    return routing.router_loss(model, balance, 0.0)


def of_factor_one(tokens: int, experts: int, factor: float) -> int:
    return expert_capacity(tokens, experts, 1.0)


class TokensChoose:
    """Stands for `ExpertChoice`, and lets each token choose."""

    def __init__(self, router: Any, experts: Any, capacity_factor: float):
        self.router, self.experts = router, experts

    def routes(self, tokens: Any) -> Any:
        choice = self.router(tokens)
        return sort_routes(choice.chosen, choice.weights, self.experts.number)


# Weighted so that a short training shows it.
Z_ARMS = {arm: replace(config, z=0.3 if config.z else 0.0) for arm, config in small(("switch", "switch_z")).items()}
Z_ARMS = {arm: replace(config, steps=60, learning_rate=3e-2) for arm, config in Z_ARMS.items()}

BROKEN: dict[str, Breakage] = {
    "z_loss_shrinks_log_sum_exp": with_and_without(Z_ARMS, trials, "router_loss", without_z_loss),
    "buffer_drops_fewer": with_and_without(
        small(("capacity_1", "capacity_1.25"), step_tokens=512, steps=40, balance=1.0),
        routing,
        "expert_capacity",
        of_factor_one,
    ),
    "expert_choice_is_even": with_and_without(small(("switch", "switch_z")), trials, "ExpertChoice", TokensChoose),
}
SABOTAGES: dict[str, Sabotage] = {
    "switch_beats_dense": as_if("switch", "dense"),
    "upcycled_beats_continued": as_if("upcycled", "continued"),
    "upcycled_beats_new_mixture": exchanged("upcycled", "scratch"),
    "z_loss_spares_choices_in_bf16": multiplied("switch_z", "bf16_ties", 20.0),
    "z_loss_keeps_quality": as_if("switch_z", "dense"),
}
