"""The figure: accuracy over labelled examples, and over the layers that are transferred."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

from .trials import AMOUNTS, CURVE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Mapping[str, str] = {
    "transformer": "transformer",
    "alone": "… without auxiliary loss",
    "lstm": "LSTM",
    "none": "not pre-trained",
}
"""The rows of Table 5."""
TITLES: Mapping[str, str] = {
    "average": "Average of four tasks",
    "sentiment": "Classification: sentiment",
    "choice": "Multiple choice: QASC",
}
"""Entailment and similarity are in the average."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw what Table 5 holds over labelled examples, and Figure 2 (left)."""
    drawn, axes = panels(len(TITLES) + 1)
    rows = [*trials, *without_auxiliary(trials)]
    for one, (task, title) in zip(axes, TITLES.items(), strict=False):
        draw_curves(
            one,
            [result for result in rows if f"{task}_{AMOUNTS[0]}" in result.metrics],
            lambda result, task=task: over_sizes(result, task),
            names=NAMES,
            title=title,
            horizontal="labelled examples",
            vertical="accuracy",
            logarithmic="x",
            finish=lambda axes: name_sizes(axes, trials),
        )
    draw_curves(
        axes[-1],
        layer_curves(trials),
        lambda result: {float(place): value for place, value in result.metrics.items()},
        names={"transformer": TITLES[CURVE]},
        title="Layers transferred",
        horizontal="transferred",
        vertical="accuracy with the most examples",
        finish=name_layers,
    )
    return drawn


def over_sizes(result: TrialResult, task: str) -> dict[float, float]:
    """Give an arm's accuracies in a task over the labelled examples."""
    return {size: result.metrics[f"{task}_{name}"] for size, name in zip(result.config["sizes"], AMOUNTS, strict=True)}


def without_auxiliary(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Give the accuracies without the auxiliary loss, which are of the same trials, an arm's name of their own."""
    return [
        TrialResult(
            "alone",
            result.seed,
            result.config,
            {name.removeprefix("alone_"): value for name, value in result.metrics.items() if name.startswith("alone_")},
            {},
            0.0,
        )
        for result in trials
        if result.arm == "transformer"
    ]


def layer_curves(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Join each seed's accuracies: with nothing transferred, with embeddings alone, and with each number of layers."""
    nothing = {result.seed: result.metrics["layers_0"] for result in trials if result.arm == "none"}
    found: list[TrialResult] = []
    for result in trials:
        if result.arm == "transformer" and result.seed in nothing:
            curve = [nothing[result.seed]]
            curve += [result.metrics[f"layers_{count}"] for count in range(result.config["layers"] + 1)]
            points = {str(place): value for place, value in enumerate(curve)}
            found.append(TrialResult("transformer", result.seed, {}, points, {}, 0.0))
    return found


def name_sizes(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Write the numbers of examples in full."""
    sizes = trials[0].config["sizes"] if trials else ()
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()


def name_layers(axes: Any) -> None:
    """Say what is transferred at each place; where nothing was drawn there is nothing to say."""
    places = max((len(line.get_xdata()) for line in axes.lines), default=0)
    names = ["nothing", "embeddings", *(f"{count} layers" for count in range(1, places - 1))]
    axes.set_xticks(range(places), [name.replace("1 layers", "1 layer") for name in names][:places])
    axes.get_legend().remove()
