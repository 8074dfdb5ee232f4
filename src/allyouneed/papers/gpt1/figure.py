"""The figure: what fine-tuning gives over the layers transferred and over pre-training, and what comes without it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import draw_curves, panels

from .pretraining import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Mapping[str, str] = {
    "transformer": "transformer",
    "lstm": "LSTM",
    "none": "not pre-trained",
    "without_auxiliary": "no auxiliary loss",
    "bigrams": "bigram model",
    "bag_of_words": "bag of words",
}
"""Arms, and the baselines beside them."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw Figure 2, left and right, and the gain over pre-training."""
    drawn, (layers, parts, zero) = panels(3)
    bigrams, words = baselines(trials)
    draw_curves(
        layers,
        [*trials, *words],
        over_layers,
        names=NAMES,
        title="Layers transferred",
        horizontal="layers",
        vertical="accuracy, fine-tuned",
    )
    draw_curves(
        parts,
        [*(trial for trial in trials if trial.arm in ("transformer", "none")), *words],
        over_parts,
        names=NAMES,
        title="Pre-training",
        horizontal="share of the steps",
        vertical="accuracy, fine-tuned",
    )
    draw_curves(
        zero,
        [*(trial for trial in trials if trial.arm in ("transformer", "lstm")), *bigrams],
        lambda trial: {part / PARTS[-1]: trial.metrics[f"zero_shot_{part}"] for part in PARTS},
        names=NAMES,
        title="Zero-shot",
        horizontal="share of the steps",
        vertical="accuracy, not fine-tuned",
    )
    return drawn


def baselines(trials: Sequence[TrialResult]) -> tuple[list[TrialResult], list[TrialResult]]:
    """Give the bigram model and the bag of words, which are of the transformer's trials, as rows that stay level."""
    bigrams: list[TrialResult] = []
    words: list[TrialResult] = []
    for trial in trials:
        if "bigrams" in trial.metrics:
            level = {f"zero_shot_{part}": trial.metrics["bigrams"] for part in PARTS}
            bigrams.append(TrialResult("bigrams", trial.seed, trial.config, level, {}, 0.0))
            share = {"accuracy": trial.metrics["bag_of_words"]}
            words.append(TrialResult("bag_of_words", trial.seed, trial.config, share, {}, 0.0))
    return bigrams, words


def over_layers(trial: TrialResult) -> dict[float, float]:
    """Give the accuracy with so many layers transferred, level where no number of them was tried."""
    whole = trial.metrics["accuracy"]
    counts = range(trial.config["layers"] + 1)
    return {float(count): trial.metrics.get(f"layers_{count}_accuracy", whole) for count in counts}


def over_parts(trial: TrialResult) -> dict[float, float]:
    """Give the accuracy after so much of pre-training, level where no part of it was tried."""
    whole = trial.metrics["accuracy"]
    return {part / PARTS[-1]: trial.metrics.get(f"part_{part}_accuracy", whole) for part in PARTS[1:]}
