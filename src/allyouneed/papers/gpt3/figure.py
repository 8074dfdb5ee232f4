"""The figure: accuracy over the number of examples in the prompt, as Figure 1.2 draws it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

from .generated import Mappings
from .tasks import FREE, OPTIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = {
    "science": "science, 4 options",
    "sentiment": "sentiment, 4 options",
    "question_type": "question types, 13 options",
    "addition": "two-digit sums, written",
    "unscrambling": "scrambled words, written",
}


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the published model's tasks, and our models of each size on tasks that were held out of training."""
    drawn, (left, middle, right) = panels(3)
    draw_curves(
        left,
        by_task(trials),
        lambda result: {float(place): value for place, value in result.metrics.items()},
        names=PUBLISHED,
        title="SmolLM2-135M, real tasks",
        horizontal="examples in the prompt",
        vertical="accuracy",
        finish=lambda axes: shot_ticks(axes, (0, 1, 4, 16)),
    )
    for axes, kind, title in ((middle, "mappings", "Ours, invented tasks"), (right, "mixture", "Ours, BIG-bench")):
        own = [result for result in trials if result.arm.startswith(kind)]
        draw_curves(
            axes,
            own,
            curve_of,
            names={result.arm: in_thousands(result.metrics) for result in own},
            title=f"{title}, held out",
            horizontal="examples in the prompt",
            vertical="accuracy",
            finish=lambda axes, own=own, kind=kind: finish(axes, own, kind),
        )
    return drawn


def by_task(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join the published model's trials of one seed with all numbers of examples, a line for each task."""
    own = [result for result in trials if result.config["kind"] == "published"]
    lines = []
    for seed in sorted({result.seed for result in own}):
        of_seed = sorted((one for one in own if one.seed == seed), key=lambda one: one.config["shots"])
        for name in PUBLISHED:
            points = {str(across(one.config["shots"])): one.metrics[name] for one in of_seed}
            lines.append(TrialResult(name, seed, {}, points, {}, 0.0))
    return lines


def curve_of(result: TrialResult) -> dict[float, float]:
    """Give a trial's accuracy over the number of examples."""
    found = {name.removeprefix("shots_"): value for name, value in result.metrics.items() if name.startswith("shots_")}
    return {across(int(shots)): value for shots, value in found.items()}


def finish(axes: Any, own: Sequence[TrialResult], kind: str) -> None:
    """Add what is known: the best accuracy that mappings allow; and the ticks."""
    if not own:
        return
    shots = [int(name.removeprefix("shots_")) for name in own[0].metrics if name.startswith("shots_")]
    if kind == "mappings":
        family = Mappings(own[0].config["letters"])
        best = [family.best(count) for count in shots]
        axes.plot([across(count) for count in shots], best, color="#666666", linestyle=":", label="best possible")
        axes.legend()
    shot_ticks(axes, shots)


def across(shots: int) -> float:
    """Give the place of a number of examples on the axis."""
    return math.log2(1 + shots)


def in_thousands(metrics: Mapping[str, float]) -> str:
    """Name a model by its parameters."""
    return f"{metrics['parameters'] / 1e3:.3g} k parameters"


def shot_ticks(axes: Any, shots: Sequence[int]) -> None:
    """Name the numbers of examples, and leave room for the legend above the lines."""
    axes.set_xticks([across(count) for count in shots], [str(count) for count in shots])
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1])
    axes.set_ylim(min(0.0, low), high + 0.09 * len(axes.get_legend().get_texts()) * (high - low))


assert set(PUBLISHED) == {tried.name for tried in OPTIONS} | set(FREE)
