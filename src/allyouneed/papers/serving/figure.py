"""The figure: what requests wait at every load, what blocks of every size hold, and what draft tokens give."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST = "first_p99_at_"


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the wait over load, as servers are compared, sequences over the size of blocks, and tokens of a step."""
    drawn, (loads, blocks, drafts) = panels(3)
    draw_curves(
        loads,
        of_task(trials, "loads", lambda result: str(result.config["scheduling"])),
        lambda result: {
            float(name.removeprefix(_FIRST)): steps for name, steps in result.metrics.items() if name.startswith(_FIRST)
        },
        names={"static": "static batching", "continuous": "continuous batching"},
        title="Waiting",
        horizontal="tokens asked for, share of what full steps generate",
        vertical="steps to the first token, 99th percentile",
        logarithmic="xy",
        finish=lambda axes: axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}"),
    )
    draw_curves(
        blocks,
        by_block(trials),
        lambda result: {float(size): sequences for size, sequences in result.metrics.items()},
        names={"memory": "in 16 contexts of 2,048 tokens"},
        title="Memory",
        horizontal="tokens of a block",
        vertical="sequences at once",
        logarithmic="xy",
        finish=block_ticks,
    )
    draw_curves(
        drafts,
        by_draft(trials),
        lambda result: {float(most): given for most, given in result.metrics.items()},
        names={f"draft of width {width}": f"draft of width {width}" for width in widths(trials)}
        | {"independent": "if accepted independently"},
        title="Draft tokens",
        horizontal="draft tokens of a step",
        vertical="tokens of a step",
    )
    return drawn


def of_task(trials: Sequence[TrialResult], task: str, name: Any) -> list[TrialResult]:
    """Give a task's trials, named as their curves."""
    own = [result for result in trials if result.config["task"] == task]
    return [curve(name(result), result.seed, {**result.metrics}) for result in own]


def curve(name: str, seed: int, points: Mapping[str, float]) -> TrialResult:
    """Give the points of a seed's curve."""
    return TrialResult(name, seed, {}, points, {}, 0.0)


def by_block(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join the trials of a seed that differ in the size of blocks."""
    found: dict[int, dict[str, float]] = {}
    for result in sorted(
        (own for own in trials if own.config["task"] == "memory"), key=lambda own: own.config["block"]
    ):
        found.setdefault(result.seed, {})[str(result.config["block"])] = result.metrics["sequences_at_once"]
    return [curve("memory", seed, points) for seed, points in found.items()]


def widths(trials: Sequence[TrialResult]) -> list[int]:
    """Give the widths of the drafts."""
    return sorted({width for own in trials if own.config["task"] == "draft" for width in own.config["draft_widths"]})


def by_draft(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Give a curve for each draft, and one for what the middle one would give if tokens were accepted independently."""
    found = []
    for own in (own for own in trials if own.config["task"] == "draft"):
        all_widths, numbers = own.config["draft_widths"], own.config["draft_tokens"]
        for width in all_widths:
            points = {str(most): own.metrics[f"tokens_a_step_of_{width}_at_{most}"] for most in numbers}
            found.append(curve(f"draft of width {width}", own.seed, points))
        middle = all_widths[len(all_widths) // 2]
        points = {str(most): own.metrics[f"independent_of_{middle}_at_{most}"] for most in numbers}
        found.append(curve("independent", own.seed, points))
    return found


def block_ticks(axes: Any) -> None:
    """Name the sizes that there are."""
    places = sorted({float(place) for line in axes.lines for place in line.get_xdata()})
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    lowest, highest = (float(bound) for bound in axes.get_ylim())
    doubled = [2.0**power for power in range(12) if lowest <= 2.0**power <= highest]
    axes.set_yticks(doubled, [f"{count:g}" for count in doubled])
    axes.minorticks_off()
