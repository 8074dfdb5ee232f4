"""The figure: what a request waits at every load, what blocks of every size waste, and what speculation gains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw latency over load, as servers are compared, and waste over the size of blocks."""
    drawn, (loads, blocks) = panels(2)
    draw_curves(
        loads,
        joined(trials, "arrivals", "scheduling", "load", "whole_p50"),
        lambda result: {float(load): seconds for load, seconds in result.metrics.items()},
        names={"static": "batches by request", "continuous": "batches by iteration"},
        title="Waiting included",
        horizontal="tokens asked for, share of what full passes write",
        vertical="seconds a token, median",
        logarithmic="y",
        finish=lambda axes: axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}"),
    )
    draw_curves(
        blocks,
        joined(trials, "memory", "task", "block", "waste"),
        lambda result: {float(size): 100 * waste for size, waste in result.metrics.items()},
        names={"memory": "held and not filled"},
        title="Memory",
        horizontal="tokens of a block",
        vertical="% of the memory that is held",
        logarithmic="xy",
        finish=block_ticks,
    )
    return drawn


def joined(trials: Sequence[TrialResult], task: str, kind: str, over: str, metric: str) -> list[TrialResult]:
    """Join the trials of a task that differ in one number into one for each kind and seed."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    own = [result for result in trials if result.config["task"] == task and not result.config["long_prompts"]]
    for result in sorted(own, key=lambda result: result.config[over]):
        measured = {**result.metrics, **result.costs}
        if metric in measured:
            points = found.setdefault((str(result.config[kind]), result.seed), {})
            points[str(result.config[over])] = measured[metric]
    return [TrialResult(name, seed, {}, points, {}, 0.0) for (name, seed), points in found.items()]


def block_ticks(axes: Any) -> None:
    """Name the sizes that there are, and draw the line that is claimed."""
    places = sorted({float(place) for line in axes.lines for place in line.get_xdata()})
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(4, color="#555555", linewidth=1, linestyle="--")
    if places:
        axes.text(places[-1], 4.3, "4 %", ha="right", color="#555555")
