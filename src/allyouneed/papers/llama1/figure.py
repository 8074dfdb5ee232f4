"""The figure: training losses over tokens as the paper draws them, and held-out losses over compute."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

from .trials import POINTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = ("small", "medium", "large")
BUDGETS = ("half", "whole")
"""What the arms of a size are called by: how much compute they are given."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw training loss over tokens, as the paper's Figure 1 does, and held-out loss over compute."""
    drawn, (over_tokens, over_compute) = panels(2)
    names = {f"{size}_whole": name_of(trials, f"{size}_whole") for size in SIZES}
    draw_curves(
        over_tokens,
        trials,
        training_curve,
        names=names,
        title="By parameters, all with the same compute",
        horizontal="millions of tokens",
        vertical="training loss, nats a token",
        logarithmic="x",
        finish=token_ticks,
    )
    draw_curves(
        over_compute,
        by_compute(trials),
        lambda result: dict(zip(result.config["flops"], result.config["losses"], strict=True)),
        names={size: names[f"{size}_whole"] for size in SIZES} | {"gpt2": name_of(trials, "gpt2_whole")},
        title="Each trained to its end",
        horizontal="training compute, 10¹² operations",
        vertical="held-out loss, nats a token",
        logarithmic="x",
        finish=compute_ticks,
    )
    return drawn


def name_of(trials: Sequence[TrialResult], arm: str) -> str:
    """Call an arm by its number of parameters, as the paper does."""
    parameters = [result.metrics["parameters"] for result in trials if result.arm == arm]
    block = "GPT-2" if arm.startswith("gpt2") else "LLaMA"
    return f"{block}, {parameters[0] / 1e3:,.0f} thousand" if parameters else arm


def training_curve(result: TrialResult) -> dict[float, float]:
    """Give the training loss over the millions of tokens seen; the first part, where all are alike, is left out."""
    each = result.metrics["training_tokens"] / 1e6 / POINTS
    return {
        each * (place - 0.5): result.metrics[f"training_loss_{place}"]
        for place in range(2, POINTS + 1)
        if f"training_loss_{place}" in result.metrics
    }


def by_compute(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join the trials of a size and seed at all budgets, so that a line can be drawn through them."""
    joined = []
    for size in (*SIZES, "gpt2"):
        arms = [f"{size}_{budget}" for budget in BUDGETS]
        for seed in sorted({result.seed for result in trials}):
            own = [result for arm in arms for result in trials if (result.arm, result.seed) == (arm, seed)]
            if own:
                config = {
                    "flops": [result.metrics["training_flops"] / 1e12 for result in own],
                    "losses": [result.metrics["loss"] for result in own],
                }
                joined.append(TrialResult(size, seed, config, {}, {}, 0.0))
    return joined


def token_ticks(axes: Any) -> None:
    """Name the numbers of tokens in plain numbers."""
    places = [float(x) for line in axes.lines for x in line.get_xdata()]
    if places:
        powers = range(math.floor(math.log2(min(places))), math.ceil(math.log2(max(places))) + 1)
        axes.set_xticks([2.0**power for power in powers], [f"{2.0**power:.2g}" for power in powers])


def compute_ticks(axes: Any) -> None:
    """Name the budgets, which the arms meet to half a step, and give the points room."""
    places = sorted({float(x) for line in axes.lines for x in line.get_xdata()})
    if places:
        ticks = {f"{place:.2g}": place for place in places}
        axes.set_xticks(list(ticks.values()), list(ticks))
        axes.minorticks_off()
        axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
