"""The figure: the loss over the number of parameters, a line for each kind of text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

from .trials import SEEN, UNSEEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "train": "novels and addresses, trained on",
    "test": "novels and addresses, held out",
    "brown": "Brown corpus",
    "verses": "Bible verses",
    "manual": "Python's reference manual",
    "code": "Python's standard library",
    "spanish": "Bible verses, Spanish",
}


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the loss over the model's size: on train and test as Figure 4 does, on unseen kinds of text as Figure 1."""
    drawn, axes = panels(2)
    joined = by_size(trials)
    for panel, kinds, title in zip(axes, (SEEN, UNSEEN), ("The kind trained on", "Kinds never seen"), strict=True):
        draw_curves(
            panel,
            joined,
            lambda result: {float(size): loss for size, loss in result.metrics.items()},
            names={kind: NAMES[kind] for kind in kinds},
            title=title,
            horizontal="parameters",
            vertical="bits per byte",
            logarithmic="x",
            finish=lambda panel: size_ticks(panel, joined),
        )
    return drawn


def by_size(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join the trials of one seed at all sizes, a line for each kind of text."""
    sized = [result for result in trials if "parameters" in result.metrics]
    lines: list[TrialResult] = []
    for seed in sorted({result.seed for result in sized}):
        own = sorted((result for result in sized if result.seed == seed), key=lambda result: parameters(result.metrics))
        for kind in (*SEEN, *UNSEEN):
            losses = {str(parameters(result.metrics)): result.metrics[kind] for result in own}
            lines.append(TrialResult(kind, seed, {}, losses, {}, 0.0))
    return lines


def parameters(metrics: Mapping[str, float]) -> int:
    """Read the number of parameters."""
    return int(metrics["parameters"])


def size_ticks(axes: Any, joined: Sequence[TrialResult]) -> None:
    """Name the sizes that there are, and leave room for the legend above the lines."""
    sizes = sorted({int(size) for result in joined for size in result.metrics})
    axes.set_xticks(sizes, [f"{size / 1e6:.3g} M" if size >= 1e6 else f"{size / 1e3:.3g} k" for size in sizes])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * len(axes.get_legend().get_texts()) * (high - low))
