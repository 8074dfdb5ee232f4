"""Does layer norm make an LSTM learn in fewer steps, does it bear small batches, and is Table 1 right?

Laptop: meant for about 10 minutes on 2 cores; its run is not recorded yet.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from allyouneed.data import Split, austen
from allyouneed.data.batches import RandomWindows, Shuffled, consecutive_windows
from allyouneed.data.mnist import mnist
from allyouneed.evidence import (
    Better,
    Claim,
    Context,
    Equivalent,
    Exact,
    Experiment,
    Scale,
    TrialResult,
    draw_curves,
    panels,
)
from allyouneed.text import ByteTokenizer
from allyouneed.training import Constant, Loss, TrainingConfig, evaluate, train
from allyouneed.training.loop import LossFunction

from .baselines import BatchNorm, RecurrentBatchNorm
from .invariances import NORMS, TABLE_1, deviations
from .layer_norm import LayerNorm
from .recurrent import LSTM, MakeNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = Literal["language", "digits", "table"]
Norm = Literal["none", "layer", "batch", "weight"]


@dataclass(frozen=True)
class LayerNormConfig:
    """One arm.

    Attributes:
        task: an LSTM that reads novels, a classifier of digits, or Table 1.
        norm: what is normalised, and how.
        batch: windows or images in a batch.
        learning_rate: the best of a grid that all arms were given (see the readme).
        momentum: of batch norm's running averages: the share of the newest batch.
        forget_bias: of the LSTM's forget gate, at first (language).
        clip: the largest norm of the gradient (language).
        held_out: the split that is scored while training; learning rates were chosen on validation.
        evaluations: how often it is scored.
        length: characters in a window (language).
        width: of the characters' embeddings (language).
        hidden: units of the LSTM (language).
        layers: LSTMs, one on the other (language).
        steps: optimiser steps (language).
        scored: held-out characters (language).
        target: the held-out loss to be reached, in nats a character (language).
        units: of each of the two hidden layers (digits).
        images: seen in training, whatever the batch (digits).
        draws: of weights and data (table).
    """

    task: Task
    norm: Norm
    batch: int = 16
    learning_rate: float = 1e-3
    momentum: float = 0.1
    forget_bias: float = 1.0
    clip: float = 1.0
    held_out: Split = "test"
    evaluations: int = 20
    length: int = 64
    width: int = 64
    hidden: int = 160
    layers: int = 1
    steps: int = 500
    scored: int = 8192
    target: float = 2.0
    units: int = 256
    images: int = 20_000
    draws: int = 200


class CharacterModel(nn.Module):
    """Embeddings, LSTMs, and a linear map to the logits of the next character."""

    def __init__(self, config: LayerNormConfig):
        super().__init__()
        norms: dict[str, MakeNorm] = {
            "none": nn.Identity,
            "layer": LayerNorm,
            "batch": lambda units: RecurrentBatchNorm(units, config.length, momentum=config.momentum),
        }
        widths = [config.width, *[config.hidden] * config.layers]
        self.embedding = nn.Embedding(256, config.width)
        self.layers = nn.ModuleList(
            LSTM(inputs, hidden, norms[config.norm], forget_bias=config.forget_bias)
            for inputs, hidden in pairwise(widths)
        )
        self.output = nn.Linear(config.hidden, 256)

    def forward(self, characters: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of each next character."""
        hidden = self.embedding(characters)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return self.output(hidden)


def next_character(model: nn.Module, windows: Int[Tensor, "batch window"]) -> Loss:
    """Sum the cross-entropies of each character given those before it."""
    targets = windows[:, 1:].flatten()
    return Loss(F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), targets, reduction="sum"), targets.numel())


def classifier(config: LayerNormConfig) -> nn.Sequential:
    """Compose the 784-units-units-10 classifier: norms on the hidden layers, none on the logits (section 6.6)."""
    # The unbiased estimator is the paper's choice for batches of 4.
    norms: dict[str, MakeNorm] = {
        "none": nn.Identity,
        "layer": LayerNorm,
        "batch": lambda units: BatchNorm(units, momentum=config.momentum, unbiased=config.batch <= 4),
    }
    parts: list[nn.Module] = []
    for inputs in (28 * 28, config.units):
        linear = nn.Linear(inputs, config.units)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        parts += [linear, norms[config.norm](config.units), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(config.units, 10))


def digit_loss(model: nn.Module, batch: tuple[UInt8[Tensor, "images 28 28"], Int[Tensor, " images"]]) -> Loss:
    """Sum the cross-entropies of the digits."""
    images, digits = batch
    return Loss(F.cross_entropy(model(images.flatten(1) / 255.0), digits, reduction="sum"), len(digits))


def digit_errors(model: nn.Module, batch: tuple[UInt8[Tensor, "images 28 28"], Int[Tensor, " images"]]) -> Loss:
    """Count the images that are taken for another digit."""
    images, digits = batch
    return Loss((model(images.flatten(1) / 255.0).argmax(1) != digits).float().sum(), len(digits))


def train_watched(
    model: nn.Module,
    batches: Callable[[int], Any],
    loss: LossFunction,
    training: TrainingConfig,
    held_out: Sequence[Any],
    score: LossFunction,
    evaluations: int,
    context: Context,
) -> dict[int, float]:
    """Train, and give the held-out score after each of so many equal parts of the training, by step."""
    every = max(1, training.steps // evaluations)

    def log(step: int, steps: int, **values: float) -> None:
        if step % every == 0 or step == steps:
            values["held_out"] = evaluate(model, held_out, score, fabric=context.fabric)
        context.log(step, steps, **values)

    train(model, batches, loss, training, fabric=context.fabric, checkpoint=context.checkpoint, log=log)
    # From the file, since a trial that was interrupted made some of its scores in an earlier process.
    lines = [json.loads(line) for line in (context.folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["held_out"] for line in lines if "held_out" in line}


@cache
def characters(split: Split) -> Tensor:
    """Give the bytes of the novels of a split."""
    return ByteTokenizer().encode_to_tensor(austen(split))


def language(config: LayerNormConfig, context: Context) -> dict[str, float]:
    """Train an LSTM on novels; score another novel."""
    losses = train_watched(
        CharacterModel(config),
        RandomWindows(characters("train"), config.length, config.batch, context.seed),
        next_character,
        TrainingConfig(
            config.steps,
            config.learning_rate,
            schedule=Constant(warmup=config.steps // 20),
            weight_decay=0.0,
            betas=(0.9, 0.999),
            clip=config.clip,
        ),
        consecutive_windows(characters(config.held_out), config.length, 32, limit=config.scored),
        next_character,
        config.evaluations,
        context,
    )
    curve = {f"loss_at_{step}": loss for step, loss in losses.items()}
    return curve | {"loss": losses[config.steps], "steps_to_target": steps_to(config.target, losses)}


def steps_to(target: float, losses: Mapping[int, float]) -> float:
    """Give the step at which a curve first reaches a loss, on the line between two of its points.

    A curve that never does gives its last step, which is less than the truth and so never flatters what is compared.
    """
    before: tuple[int, float] | None = None
    for step, loss in sorted(losses.items()):
        if loss <= target:
            if before is None:
                return float(step)
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = step, loss
    return float(max(losses))


def digits(config: LayerNormConfig, context: Context) -> dict[str, float]:
    """Train a classifier on MNIST; count its errors on other images."""
    errors = train_watched(
        classifier(config),
        Shuffled(mnist("train"), config.batch, context.seed),
        digit_loss,
        TrainingConfig(
            config.images // config.batch,
            config.learning_rate,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            clip=None,
        ),
        list(zip(*(tensor.split(1000) for tensor in mnist(config.held_out)), strict=True)),
        digit_errors,
        config.evaluations,
        context,
    )
    last = [errors[step] for step in sorted(errors)[-max(1, len(errors) // 4) :]]
    curve = {f"error_after_{step * config.batch}": error for step, error in errors.items()}
    return curve | {"error": sum(last) / len(last)}


def table(config: LayerNormConfig, context: Context) -> dict[str, float]:
    """Try a row of Table 1 on random weights and data."""
    draws = [deviations(config.norm, context.seed * config.draws + draw) for draw in range(config.draws)]
    metrics = {f"{column}_most": max(draw[column] for draw in draws) for column in draws[0]}
    metrics |= {f"{column}_least": min(draw[column] for draw in draws) for column in draws[0]}
    invariant = TABLE_1[config.norm]
    metrics["invariant_most"] = max(metrics[f"{column}_most"] for column in invariant)
    metrics["other_least"] = min(metrics[f"{column}_least"] for column in draws[0] if column not in invariant)
    return metrics


TASKS: Mapping[Task, Callable[[LayerNormConfig, Context], dict[str, float]]] = {
    "language": language,
    "digits": digits,
    "table": table,
}


def trial(config: LayerNormConfig, context: Context) -> Mapping[str, float]:
    """Run one arm's task."""
    return TASKS[config.task](config, context)


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the recurrent arms as Figures 2 to 4 do, and the classifiers as the lower half of Figure 6 does."""
    drawing, (left, right) = panels(2)

    def curve(prefix: str) -> Callable[[TrialResult], dict[float, float]]:
        return lambda trial: {
            float(name.removeprefix(prefix)): value for name, value in trial.metrics.items() if name.startswith(prefix)
        }

    draw_curves(
        left,
        trials,
        curve("loss_at_"),
        names={"lstm": "LSTM", "bn_lstm": "BN-LSTM", "ln_lstm": "LN-LSTM"},
        title="Reading a held-out novel",
        horizontal="training steps",
        vertical="loss (nats a character)",
    )
    large = max(trial.config["batch"] for trial in trials if trial.config["task"] == "digits")
    draw_curves(
        right,
        trials,
        curve("error_after_"),
        names={
            f"{norm}_{arm}": f"{name}, batch {size}"
            for arm, size in (("large", large), ("4", 4))
            for norm, name in (("none", "no norm"), ("batch", "batch norm"), ("layer", "layer norm"))
        },
        title="Telling digits",
        horizontal="images seen in training",
        vertical="test error",
        logarithmic="y",
    )
    return drawing


def arms(
    base: LayerNormConfig, large: int = 128, tuned: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, LayerNormConfig]:
    """Give three LSTMs, three classifiers at each of two batch sizes, and the rows of Table 1.

    Args:
        base: what the arms share; its own batch is that of the LSTMs.
        large: the larger batch of the classifiers.
        tuned: for an arm's name, the settings that are its own.
    """
    norms: tuple[Norm, ...] = ("none", "batch", "layer")
    chosen = {name: replace(base, norm=norm) for name, norm in zip(("lstm", "bn_lstm", "ln_lstm"), norms, strict=True)}
    for size, batch in (("large", large), ("4", 4)):
        chosen |= {f"{norm}_{size}": replace(base, task="digits", norm=norm, batch=batch) for norm in norms}
    chosen = {arm: replace(config, **(tuned or {}).get(arm, {})) for arm, config in chosen.items()}
    tables: tuple[Norm, ...] = ("batch", "weight", "layer")
    return chosen | {f"table_{norm}": replace(base, task="table", norm=norm) for norm in tables}


TUNED: Mapping[str, Mapping[str, float]] = {
    "lstm": {"learning_rate": 16e-3},
    "bn_lstm": {"learning_rate": 16e-3},
    "ln_lstm": {"learning_rate": 16e-3},
    "none_large": {"learning_rate": 3e-3},
    "batch_large": {"learning_rate": 3e-3},
    "layer_large": {"learning_rate": 1e-3},
    "none_4": {"learning_rate": 1e-3},
    "batch_4": {"learning_rate": 1e-3},
    "layer_4": {"learning_rate": 3e-4},
}
"""What is each arm's own at the laptop scale: the best of one grid for all (see the readme)."""

TINY_LSTM = "One layer of 160 units and 0.6 million characters stand for the paper's models, which trained for days."
TINY_DIGITS = "Layers of 256 units and one pass over the images stand for the paper's 1,000 units and 65 passes."
DRAWN = "Nothing: the identity is tried on random weights and data, without an epsilon."

COLUMNS = {
    "weight_matrix_scaled": "scaling the weight matrix",
    "weight_matrix_shifted": "shifting all its rows alike",
    "weight_vector_scaled": "scaling one unit's weights",
    "data_scaled": "scaling the data",
    "data_shifted": "shifting the data",
    "case_scaled": "scaling one case",
}
"""The columns of Table 1, in words."""


def table_claims(norm: str) -> tuple[Claim, Claim]:
    """Give the two claims of a row of Table 1: what changes nothing, and what changes something."""
    unchanged = ", ".join(words for column, words in COLUMNS.items() if column in TABLE_1[norm])
    changed = ", ".join(words for column, words in COLUMNS.items() if column not in TABLE_1[norm])
    arm = f"table_{norm}"
    return (
        Claim(
            id=f"{norm}_norm_invariant",
            statement=f"The output of {norm} norm does not change with: {unchanged}.",
            source="Table 1; section 5.1",
            test=Exact("invariant_most", arms=(arm,), at_most=1e-9),
            scale_gap=DRAWN,
        ),
        Claim(
            id=f"{norm}_norm_not_invariant",
            statement=f"The output of {norm} norm changes, in every draw, with: {changed}.",
            source="Table 1",
            test=Exact("other_least", arms=(arm,), at_least=0.1),
            scale_gap=DRAWN,
        ),
    )


CLAIMS = (
    Claim(
        id="fewer_steps",
        statement="An LSTM with layer norm reaches a given held-out loss in at least a tenth fewer steps than without.",
        source="Figures 2 to 4; sections 6.1 and 6.4",
        paper_value="60 % of the time (order embeddings), almost twice as fast (DRAW)",
        test=Better("steps_to_target", arm="ln_lstm", than="lstm", margin=0.1, relative=True),
        scale_gap=f"{TINY_LSTM} The loss to reach is the plain LSTM's own, near the end of its training.",
    ),
    Claim(
        id="lower_loss",
        statement="After as many steps, the held-out loss of an LSTM is lower with layer norm than without.",
        source="Figures 2 and 4, section 6.4",
        paper_value="82.09 against 82.36 nats (DRAW, 200 epochs)",
        test=Better("loss", arm="ln_lstm", than="lstm"),
        scale_gap=f"{TINY_LSTM} The paper compares ends; here the plain LSTM is still learning.",
    ),
    Claim(
        id="lower_than_batch_norm",
        statement="After as many steps, the held-out loss of an LSTM is lower with layer norm than with batch norm.",
        source="Figure 2, section 6.2",
        test=Better("loss", arm="ln_lstm", than="bn_lstm"),
        scale_gap=f"{TINY_LSTM} All sequences have one length here, which spares batch norm what it finds hardest.",
    ),
    Claim(
        id="small_batches_break_batch_norm",
        statement="At batches of 4, a classifier with batch norm has a higher test error than one without a norm.",
        source="Figure 6, lower right",
        test=Better("error", arm="none_4", than="batch_4"),
        scale_gap=TINY_DIGITS,
    ),
    Claim(
        id="layer_norm_bears_small_batches",
        statement="At batches of 4, layer norm's test error is at least a tenth below batch norm's.",
        source="Figure 6, lower right; section 6.6",
        test=Better("error", arm="layer_4", than="batch_4", margin=0.1, relative=True),
        scale_gap=TINY_DIGITS,
    ),
    Claim(
        id="layer_norm_at_any_batch",
        statement="Layer norm's test error at batches of 4 is at most 1 percentage point above that at large ones.",
        source="Figure 6; section 6.6",
        test=Better("error", arm="layer_4", than="layer_large", margin=-0.01),
        scale_gap=f"{TINY_DIGITS} With as many images, small batches take more steps.",
    ),
    Claim(
        id="equal_at_large_batches",
        statement="At batches of 128, the test errors of layer and batch norm are within 1 percentage point.",
        source="Figure 6, lower left",
        test=Equivalent("error", arm="layer_large", to="batch_large", tolerance=0.01),
        scale_gap=TINY_DIGITS,
    ),
    *(claim for norm in NORMS for claim in table_claims(norm)),
)

EXPERIMENT = Experiment(
    paper="layer_norm",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                LayerNormConfig(
                    "language",
                    "none",
                    batch=4,
                    evaluations=2,
                    length=6,
                    width=8,
                    hidden=8,
                    steps=3,
                    scored=96,
                    units=8,
                    images=48,
                    draws=3,
                ),
                large=16,
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(LayerNormConfig("language", "none"), tuned=TUNED), seeds=5),
        "gpu": Scale(
            arms(
                LayerNormConfig(
                    "language",
                    "none",
                    batch=64,
                    learning_rate=2e-3,
                    length=128,
                    width=256,
                    hidden=1024,
                    steps=1000,
                    scored=65_536,
                    target=1.4,
                    units=1000,
                    images=150_000,
                ),
                tuned={f"{norm}_4": {"learning_rate": 3e-4} for norm in ("none", "batch", "layer")},
            ),
            seeds=3,
            device="cuda",
        ),
    },
)
