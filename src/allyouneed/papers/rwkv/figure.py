"""The figure: Figure 7's time to write a text, what is carried meanwhile, and a training step over its length."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = {f"written_x{times}": times for times in (1, 2, 4, 8, 16)}
"""The arms that write texts, and how many times the shortest text theirs is."""
STEPPED = {f"step_x{times}": times for times in (1, 2, 4, 8)}
"""The arms that take steps, and how many times the shortest sequence theirs is."""
NAMES = {"transformer": "transformer with cache", "rwkv": "RWKV"}
STEPS = {"transformer": "attention written out", "rwkv": "RWKV", "fused": "torch's fused attention"}


def across(
    trials: Sequence[TrialResult], arms: Mapping[str, int], value: Callable[[TrialResult, str], float], lines: Any
) -> list[TrialResult]:
    """Give a result for each line and seed, with a point of every arm as its metrics."""
    drawn = []
    for line in lines:
        for seed in sorted({trial.seed for trial in trials if trial.arm in arms}):
            own = [trial for trial in trials if trial.arm in arms and trial.seed == seed]
            points = {str(trial.config["length"]): value(trial, line) for trial in own}
            drawn.append(TrialResult(line, seed, {}, points, {}, 0.0))
    return drawn


def points(result: TrialResult) -> dict[float, float]:
    """Give the points of a line, in order of length."""
    return dict(sorted((float(x), y) for x, y in result.metrics.items()))


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw four panels."""
    drawing, (seconds, state, time, memory) = panels(4)

    def ticks(arms: Mapping[str, int]) -> Callable[[Any], None]:
        lengths = sorted({result.config["length"] for result in trials if result.arm in arms})

        def finish(axes: Any) -> None:
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            axes.minorticks_off()

        return finish

    def from_zero(axes: Any) -> None:
        axes.set_ylim(bottom=0)
        longest = max((result.config["length"] for result in trials if result.arm in WRITTEN), default=1)
        axes.set_xticks([longest * part // 4 for part in range(5)], [f"{longest * part // 4:,}" for part in range(5)])

    draw_curves(
        seconds,
        across(trials, WRITTEN, lambda result, model: result.costs[f"{model}_seconds"], NAMES),
        points,
        names=NAMES,
        title="Writing a text",
        horizontal="tokens written",
        vertical="seconds",
        finish=from_zero,
    )
    draw_curves(
        state,
        across(trials, WRITTEN, lambda result, model: result.metrics[f"{model}_bytes"] / 1e6, NAMES),
        points,
        names=NAMES,
        title="Carried from token to token",
        horizontal="tokens written",
        vertical="megabytes",
        logarithmic="xy",
        finish=ticks(WRITTEN),
    )
    for axes, unit, title in ((time, "milliseconds", "Time of a step"), (memory, "megabytes", "Memory of a step")):

        def value(result: TrialResult, way: str, unit: str = unit) -> float:
            return (result.costs if unit == "milliseconds" else result.metrics)[f"{way}_{unit}"]

        draw_curves(
            axes,
            across(trials, STEPPED, value, STEPS),
            points,
            names=STEPS,
            title=f"{title}, forward and backward",
            horizontal="length (tokens)",
            vertical=unit,
            logarithmic="xy",
            finish=ticks(STEPPED),
        )
    return drawing
