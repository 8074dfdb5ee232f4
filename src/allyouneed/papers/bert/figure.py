"""The figure: accuracy over labelled examples, as one panel a task, and tagging by masking strategy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import COLOURS, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Mapping[str, str] = {
    "bert": "BERT",
    "no_nsp": "no NSP",
    "left_to_right": "left to right, no NSP",
    "none": "not pre-trained",
}
"""The rows of Table 5, and a model with new weights."""
TITLES: Mapping[str, str] = {
    "tagging": "Token task: part of speech",
    "prose": "Sentence task: kind of prose",
    "pairs": "Pair task: same text or not",
}
STRATEGIES: Mapping[str, str] = {
    "bert": "80 / 10 / 10",
    "mask_only": "100 / 0 / 0",
    "random_only": "0 / 100 / 0",
}
"""The rows of Table 8 that are tried: shares that become [MASK], another token, and stay."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw what Table 5 and Table 8 hold: tasks by what a model was pre-trained on, and features by masking."""
    drawn, axes = panels(len(TITLES) + 1)
    for one, (task, title) in zip(axes, TITLES.items(), strict=False):
        draw_curves(
            one,
            [trial for trial in trials if task in trial.metrics],
            lambda result, task=task: {size: result.metrics[f"{task}_{size}"] for size in result.config["sizes"]},
            names=NAMES,
            title=title,
            horizontal="labelled examples",
            vertical="accuracy",
            logarithmic="x",
            finish=lambda axes: name_sizes(axes, trials),
        )
    strategies(axes[-1], trials)
    return drawn


def name_sizes(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Write the numbers of examples in full."""
    sizes = trials[0].config["sizes"] if trials else ()
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()


def strategies(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Draw tagging by masking strategy, fine-tuned and with features as they are: each seed a dot, the mean a bar."""
    for offset, metric, name in ((-0.15, "tagging_most", "fine-tuned"), (0.15, "features", "features, unchanged")):
        colour = COLOURS[0] if offset < 0 else COLOURS[1]
        label: str | None = name
        for place, arm in enumerate(STRATEGIES):
            own = [value_of(trial, metric) for trial in trials if trial.arm == arm]
            if not own:
                continue
            axes.plot([place + offset] * len(own), own, "o", color=colour, alpha=0.5, markersize=4)
            middle = sum(own) / len(own)
            axes.plot(
                [place + offset - 0.1, place + offset + 0.1], [middle] * 2, color=colour, linewidth=2.5, label=label
            )
            label = None
    axes.set_xticks(range(len(STRATEGIES)), list(STRATEGIES.values()))
    axes.set_xlabel("% of chosen tokens: masked / random / same")
    axes.set_ylabel("accuracy, part of speech")
    axes.set_title("Masking strategies", loc="left", fontsize=11)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)


def value_of(trial: TrialResult, metric: str) -> float:
    """Read a metric of a trial; `tagging_most` is tagging with the most examples."""
    return trial.metrics[f"tagging_{trial.config['sizes'][-1]}" if metric == "tagging_most" else metric]
