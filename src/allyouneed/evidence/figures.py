"""Figures: one look for all rooms, and a file that is the same for the same results."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .claims import TrialResult

# Okabe and Ito's palette: told apart by readers with any colour vision, on white and on dark grey.
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "allyouneed",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def panels(count: int) -> tuple[Figure, list[Any]]:
    """Make a figure with axes side by side, in the look of all rooms.

    Args:
        count: of the axes.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4 if count == 1 else 4.8 * count, 4.0), layout="constrained")
        return figure, [figure.add_subplot(1, count, index + 1) for index in range(count)]


def draw_curves(
    axes: Any,
    trials: Sequence[TrialResult],
    points: Callable[[TrialResult], Mapping[float, float]],
    *,
    names: Mapping[str, str],
    horizontal: str,
    vertical: str,
    title: str = "",
    logarithmic: str = "",
    finish: Callable[[Any], None] | None = None,
) -> None:
    """Draw a line for each arm: the mean over seeds, with every seed as a faint line behind it.

    Args:
        axes: drawn on.
        trials: the results.
        points: gives a trial's points, x → y.
        names: the arms to draw, in order, with what the legend calls them.
        horizontal: label of the x axis.
        vertical: label of the y axis.
        title: above the axes.
        logarithmic: "x", "y" or "xy": which axes are.
        finish: called with the axes at the end, for ticks and limits.
    """
    with mpl.rc_context(_STYLE):
        for index, (arm, name) in enumerate(names.items()):
            own = [points(trial) for trial in trials if trial.arm == arm]
            if not own:
                continue
            colour = COLOURS[index % len(COLOURS)]
            for curve in own:
                axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.45)
            shared = sorted(set.intersection(*(set(curve) for curve in own)))
            means = [sum(curve[x] for curve in own) / len(own) for x in shared]
            axes.plot(
                shared,
                means,
                color=colour,
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.8,
                label=name,
            )
        if "x" in logarithmic:
            axes.set_xscale("log", base=2)
        if "y" in logarithmic:
            axes.set_yscale("log")
        axes.set_xlabel(horizontal)
        axes.set_ylabel(vertical)
        if title:
            axes.set_title(title, loc="left", fontsize=11)
        if axes.lines:
            axes.legend()
        if finish is not None:
            finish(axes)


def curves_figure(
    trials: Sequence[TrialResult], points: Callable[[TrialResult], Mapping[float, float]], **options: Any
) -> Figure:
    """Draw a figure of one panel, with the arguments of `draw_curves`."""
    figure, (axes,) = panels(1)
    draw_curves(axes, trials, points, **options)
    return figure


def svg(figure: Figure) -> str:
    """Render a figure as SVG text that has no date and no random names in it."""
    text = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(svg(figure), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
