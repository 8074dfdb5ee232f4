"""The trials of layer normalisation: an LSTM that reads novels, a classifier of digits, and Table 1 on random draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from allyouneed.data import Split, austen
from allyouneed.data.batches import RandomWindows, Shuffled, consecutive_windows
from allyouneed.data.mnist import mnist
from allyouneed.evidence import Context
from allyouneed.evidence.watching import steps_to, train_watched
from allyouneed.text import ByteTokenizer
from allyouneed.training import Constant, Loss, TrainingConfig

from .baselines import BatchNorm, RecurrentBatchNorm
from .invariances import TABLE_1, deviations
from .layer_norm import LayerNorm
from .recurrent import LSTM, MakeNorm

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
    forget_bias: float = 0.0
    clip: float = 0.25
    held_out: Split = "test"
    evaluations: int = 20
    length: int = 64
    width: int = 64
    hidden: int = 160
    layers: int = 1
    steps: int = 600
    scored: int = 8192
    target: float = 1.9
    units: int = 256
    images: int = 50_000
    draws: int = 200


class CharacterModel(nn.Module):
    """Embeddings, LSTMs, and a linear layer to the logits of the next character."""

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
    ).scores
    curve = {f"loss_at_{step}": loss for step, loss in losses.items()}
    return curve | {"loss": losses[config.steps], "steps_to_target": steps_to(config.target, losses)}


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
    ).scores
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
