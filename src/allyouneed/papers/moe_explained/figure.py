"""The figure: losses over steps, dropped tokens against memory, and mixtures from a dense model against new ones."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import COLOURS, MARKERS, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPACITIES = ("capacity_1", "capacity_1.25", "capacity_2")


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the curves of Switch and the dense model, what capacity costs and saves, and upcycling."""
    drawn, (curves, capacity, upcycling) = panels(3)
    draw_curves(
        curves,
        trials,
        late_curve,
        names={"dense": "dense", "switch": "Switch", "switch_z": "Switch with z-loss"},
        title="Equal operations a token",
        horizontal="training steps",
        vertical="held-out loss, nats a token",
        finish=lambda axes: draw_target(axes, trials),
    )
    draw_capacity(capacity, trials)
    draw_curves(
        upcycling,
        trials,
        curve,
        names={"scratch": "new mixture", "upcycled": "upcycled"},
        title="From a dense model or anew",
        horizontal="further training steps",
        vertical="held-out loss, nats a token",
    )
    return drawn


def curve(result: TrialResult) -> Mapping[float, float]:
    """Give the held-out losses by step."""
    prefix = "loss_at_"
    return {
        float(name.removeprefix(prefix)): value for name, value in result.metrics.items() if name.startswith(prefix)
    }


def late_curve(result: TrialResult) -> Mapping[float, float]:
    """Give the losses of the last two thirds of a training, where the arms can be told apart."""
    points = curve(result)
    return {step: loss for step, loss in points.items() if step >= max(points) / 3}


def draw_target(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Mark the loss that is to be reached."""
    for target in {result.config["target"] for result in trials if result.arm in ("dense", "switch")}:
        axes.axhline(target, color="#999999", linewidth=0.8, linestyle="--")


def draw_capacity(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Draw the share of dropped tokens over the memory of a step, a point for each trial of a capacity."""
    own = [result for result in trials if result.arm in CAPACITIES]
    for index, factor in enumerate(sorted({result.config["capacity_factor"] for result in own})):
        points = [
            (result.costs["step_megabytes"], result.metrics["dropped"])
            for result in own
            if result.config["capacity_factor"] == factor
        ]
        label = f"capacity factor {factor:g}"
        axes.plot(*zip(*points, strict=True), MARKERS[index], color=COLOURS[index], markersize=5, label=label)
    axes.set_xlabel("memory of a step with all slots, MB")
    axes.set_ylabel("share of dropped tokens")
    axes.set_title("Capacity", loc="left", fontsize=11)
    axes.set_ylim(bottom=0)
    if own:
        axes.legend(frameon=False)
