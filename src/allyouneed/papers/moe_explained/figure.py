"""The figure: losses over steps, what begins with the dense model, and dropped tokens."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import COLOURS, MARKERS, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPACITIES = {"capacity_1": "1", "capacity_1.25": "1.25"}
LATE = 0.3
"""Of a training, the share that is left out where arms cannot be told apart on one scale with its beginning."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the curves of Switch and the dense model, what goes on from the dense model, and dropped tokens."""
    drawn, (curves, upcycling, capacity) = panels(3)
    draw_curves(
        curves,
        trials,
        curve_over_steps,
        names={"dense": "dense", "switch": "Switch", "switch_z": "Switch with z-loss"},
        title="Equal operations a token",
        horizontal="training steps",
        vertical="held-out loss, nats a token",
    )
    draw_curves(
        upcycling,
        trials,
        curve_over_operations,
        names={"continued": "dense, continued", "upcycled": "upcycled", "scratch": "new mixture"},
        title="From the dense model or anew",
        horizontal="operations, dense training = 1",
        vertical="held-out loss, nats a token",
    )
    draw_dropped(capacity, trials)
    return drawn


def curve(result: TrialResult) -> dict[float, float]:
    """Give the late held-out losses by step."""
    prefix = "loss_at_"
    points = {
        float(name.removeprefix(prefix)): value for name, value in result.metrics.items() if name.startswith(prefix)
    }
    first = 0.0 if result.arm in ("continued", "upcycled") else LATE * max(points)
    return {step: loss for step, loss in sorted(points.items()) if step >= first}


def curve_over_steps(result: TrialResult) -> Mapping[float, float]:
    """Give the late losses by step."""
    return curve(result)


def curve_over_operations(result: TrialResult) -> Mapping[float, float]:
    """Give the late losses by operations, in those of the dense training; what goes on from it begins there."""
    begins = 0.0 if result.arm == "scratch" else 1.0
    share = 1.0 if result.arm == "scratch" else 0.5
    points = curve(result)
    return {begins + share * step / max(points): loss for step, loss in points.items()}


def draw_dropped(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Draw the share of dropped tokens, a point for each trial of a capacity."""
    for index, (arm, factor) in enumerate(CAPACITIES.items()):
        found = [100 * result.metrics["dropped"] for result in trials if result.arm == arm]
        if found:
            axes.plot([index] * len(found), found, MARKERS[index], color=COLOURS[index], label=f"factor {factor}")
    axes.set_xlim(-0.5, len(CAPACITIES) - 0.5)
    axes.set_xticks(range(len(CAPACITIES)), list(CAPACITIES.values()))
    axes.set_xlabel("capacity factor")
    axes.set_ylabel("dropped tokens, %")
    axes.set_title("Capacity", loc="left", fontsize=11)
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False)
