"""The figure: gradients over layers and over depths, and losses over learning rates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = ("post", "pre")
DEPTHS = (4, 6, 8, 16, 32)
"""Layers on each side of the models whose gradients are measured."""
PROFILE = 6
"""The depth at which gradients are compared by layer; the paper's."""
GREY = "#555555"


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the gradients over layers and over depths, as the paper's Figure 3 does, and the losses over rates."""
    drawn, (over_layers, over_depths, over_rates) = panels(3)
    # In all panels the first two colours are post- and pre-norm as the paper has them.
    by_layer = {
        f"post_{PROFILE}": "post-norm, translation",
        f"pre_{PROFILE}": "pre-norm, translation",
        "post_language": "post-norm, language model",
        "pre_language": "pre-norm, language model",
    }
    draw_curves(
        over_layers,
        trials,
        lambda result: dict(enumerate(layer_norms(result), start=1)),
        names=by_layer,
        title=f"At initialisation, {PROFILE} layers",
        horizontal="layer",
        vertical="norm of the expected gradient of W²",
        logarithmic="y",
        finish=gradient_ticks,
    )
    draw_curves(
        over_depths,
        by_depth(trials),
        lambda result: {depth: result.metrics[str(depth)] for depth in DEPTHS},
        names={"post": "post-norm, last layer", "pre": "pre-norm, last layer"},
        title="At initialisation, by depth",
        horizontal="layers on each side",
        vertical="norm of the expected gradient of W²",
        logarithmic="xy",
        finish=lambda axes: theorem_lines(axes, by_depth(trials)),
    )
    draw_curves(
        over_rates,
        trials,
        lambda result: {rate: result.metrics[f"loss_at_{rate:g}"] for rate in result.config["learning_rates"]},
        names={
            "post_without_warmup": "post-norm, no warm-up",
            "pre_without_warmup": "pre-norm, no warm-up",
            "post_with_warmup": "post-norm, warm-up",
            "pre_with_warmup": "pre-norm, warm-up",
        },
        title="Trained at each learning rate",
        horizontal="peak learning rate",
        vertical="held-out loss, nats a byte",
        logarithmic="x",
        finish=lambda axes: rate_ticks(axes, trials),
    )
    return drawn


def layer_norms(result: TrialResult) -> list[float]:
    """Read the norms of a trial, by layer."""
    return [result.metrics[f"layer_{place + 1}"] for place in range(result.config["layers"])]


def by_depth(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join the trials of one seed at all depths, so that a line can be drawn through them; incomplete ones are left."""
    found = {(result.arm, result.seed): result for result in trials}
    joined = []
    for norm in NORMS:
        for seed in sorted({result.seed for result in trials}):
            row = {depth: found.get((f"{norm}_{depth}", seed)) for depth in DEPTHS}
            metrics = {str(depth): result.metrics["last_layer"] for depth, result in row.items() if result is not None}
            if len(metrics) == len(DEPTHS):
                joined.append(TrialResult(norm, seed, {}, metrics, {}, 0.0))
    return joined


def gradient_ticks(axes: Any) -> None:
    """Name the norms in plain numbers."""
    low, high = axes.get_ylim()
    shown = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()


def theorem_lines(axes: Any, joined: Sequence[TrialResult]) -> None:
    """Draw the two laws of Theorem 1 through the means at the least depth, and name the depths."""
    for norm, exponent, name in (("post", 0.0, "constant"), ("pre", -0.5, "1/√L")):
        starts = [result.metrics[str(DEPTHS[0])] for result in joined if result.arm == norm]
        if starts:
            law = [sum(starts) / len(starts) * (depth / DEPTHS[0]) ** exponent for depth in DEPTHS]
            axes.plot(DEPTHS, law, color=GREY, linestyle="--", linewidth=1.0, zorder=0)
            axes.annotate(name, (DEPTHS[-2], law[-2]), (8, 8), textcoords="offset points", color=GREY)
    axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    gradient_ticks(axes)


def rate_ticks(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Name the learning rates, and draw the loss of byte frequencies, which a failed training ends at."""
    trained = [result for result in trials if "frequency_loss" in result.metrics]
    if not trained:
        return
    rates = trained[0].config["learning_rates"]
    axes.set_xticks(rates, [f"{1000 * rate:g}" for rate in rates])
    axes.set_xlabel("peak learning rate × 1000")
    level = trained[0].metrics["frequency_loss"]
    axes.axhline(level, color=GREY, linestyle="--", linewidth=1.0, zorder=0)
    axes.annotate("byte frequencies alone", (rates[0], level), (0, -12), textcoords="offset points", color=GREY)
    # Room for the legend above the failed trainings.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.4 * (high - low))
    axes.minorticks_off()
