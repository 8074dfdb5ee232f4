"""The figure: perplexity over the number of experts at equal operations, and how evenly they are used."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import COLOURS, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "importance_variation": "CV(Importance)",
    "load_variation": "CV(Load)",
    "largest_load": "max(Load) / mean(Load)",
}
"""The columns of Table 6."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw perplexity over experts, as Figure 2 (left) does, and Table 6 with and without the two losses."""
    drawn, (left, right) = panels(2)
    balanced = [result for result in trials if is_balanced(result)]
    dense = [result.metrics["perplexity"] for result in trials if result.config["experts"] == 0]

    def finish(axes: Any) -> None:
        if dense:
            mean = sum(dense) / len(dense)
            axes.axhline(mean, color=COLOURS[6], linestyle="--", linewidth=1.4, label="one dense layer")
            for value in dense:
                axes.axhline(value, color=COLOURS[6], linestyle="--", linewidth=0.5, alpha=0.45)
        counts = sorted({result.config["experts"] for result in balanced})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        if axes.lines:
            axes.legend()

    draw_curves(
        left,
        joined(balanced),
        lambda result: dict(zip(result.config["experts"], result.config["perplexities"], strict=True)),
        names={"mixture": "mixture, 4 experts a token"},
        title="Equal operations a token",
        horizontal="experts",
        vertical="test perplexity",
        logarithmic="x",
        finish=finish,
    )
    draw_balance(right, trials)
    return drawn


def is_balanced(result: TrialResult) -> bool:
    """Tell a mixture that was trained with both losses."""
    return result.config["experts"] > 0 and result.config["importance"] > 0


def joined(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join the trials of a seed at all numbers of experts, so that a line can be drawn through them."""
    rows = []
    for seed in sorted({result.seed for result in trials}):
        own = sorted((result for result in trials if result.seed == seed), key=lambda result: result.config["experts"])
        config = {
            "experts": [result.config["experts"] for result in own],
            "perplexities": [result.metrics["perplexity"] for result in own],
        }
        rows.append(TrialResult("mixture", seed, config, {}, {}, 0.0))
    return rows


def draw_balance(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Draw the measures of Table 6 for the largest mixture with and without its losses, every seed as a dot."""
    largest = max((result.config["experts"] for result in trials), default=0)
    for place, (name, is_it) in enumerate((("with both losses", True), ("without", False))):
        own = [
            result.metrics for result in trials if result.config["experts"] == largest and is_balanced(result) == is_it
        ]
        if not own or largest == 0:
            continue
        for column, measure in enumerate(MEASURES):
            values = [metrics[measure] for metrics in own]
            where = column + (place - 0.5) * 0.36
            label = name if column == 0 else None
            axes.bar(where, sum(values) / len(values), 0.34, color=COLOURS[place * 2], alpha=0.75, label=label)
            axes.plot([where] * len(values), values, "o", color="black", markersize=2.5)
    axes.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_title(f"Balance of {largest} experts", loc="left", fontsize=11)
    if axes.patches:
        axes.legend(frameon=False)
