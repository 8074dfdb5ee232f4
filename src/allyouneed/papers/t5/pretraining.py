"""Pre-training as a stage: a model of a seed is trained on unlabelled text once, and every fine-tuning reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from allyouneed.evidence import Context, Stage
from allyouneed.papers.transformer import translation_loss
from allyouneed.training import InverseSquareRoot, Loss, Schedule, TrainingConfig, next_token_loss, train

from .adamw import stored_for_adamw
from .config import T5Config
from .mixing import Draw, Mixture
from .objectives import Pair, bert_style, deshuffle, iid_noise, prefix_language_model, replace_spans, span_noise
from .structures import STRUCTURES, training_flops
from .texts import Vocabulary, tokenizer, unlabelled

pair_loss = partial(translation_loss, padding=0)
"""Sums the cross-entropies of targets given sources; token 0 pads."""


@dataclass(frozen=True)
class PretrainingConfig:
    """What is pre-trained, and on what.

    Attributes:
        structure: a name in `STRUCTURES`.
        objective: "bert" restores all of a row of which some tokens are masked, "spans" the hidden ones alone,
            "deshuffling" a shuffled row; "language model" goes on from a random place, or in the structure of that
            name from the beginning; "none" leaves the initial weights.
        tasks: what models are put to later, which the vocabulary covers.
        vocabulary: tokens, the sentinels among them.
        sentinels: how many there are.
        width: of the residual stream.
        layers: of each stack.
        heads: of attention.
        head_width: of each head.
        length: tokens of text that a pair is made of.
        batch: pairs of a step, in fine-tuning and on a mixture too.
        compute: in 10¹² floating-point operations; how many steps that is depends on the pairs.
        learning_rate: at its peak.
        rate: share of tokens that is corrupted.
        mean_span: tokens of a hidden span on average.
    """

    structure: str = "encoder-decoder"
    objective: Literal["bert", "spans", "deshuffling", "language model", "none"] = "bert"
    tasks: tuple[str, ...] = ("sentiment", "question_type", "qasc_overlap")
    vocabulary: int = 1024
    sentinels: int = 24
    width: int = 64
    layers: int = 2
    heads: int = 4
    head_width: int = 16
    length: int = 48
    batch: int = 12
    compute: float = 1.2
    learning_rate: float = 3e-3
    rate: float = 0.15
    mean_span: float = 3.0

    @property
    def sizes(self) -> T5Config:
        """The model's numbers; without dropout, since text is hardly seen twice."""
        return T5Config(
            vocabulary=self.vocabulary,
            width=self.width,
            head_width=self.head_width,
            hidden=4 * self.width,
            layers=self.layers,
            heads=self.heads,
            dropout=0.0,
        )

    @property
    def words(self) -> Vocabulary:
        """What the vocabulary is learned for, the same for all arms."""
        return Vocabulary(self.vocabulary, self.sentinels, self.tasks)

    @property
    def whole_rows(self) -> bool:
        """Whether pre-training predicts every token of a row, and so makes no pairs."""
        return self.objective == self.structure == "language model"

    @property
    def flops_per_pair(self) -> int:
        """Floating-point operations of training on what is made of one row of text, forward and backward."""
        length = self.length
        if self.whole_rows:
            return training_flops(self.sizes, self.structure, 0, length)
        source = target = length
        if self.objective == "spans":
            hidden = round(length * self.rate)
            spans = max(1, round(hidden / self.mean_span))
            source, target = length - hidden + spans, hidden + spans + 1
        elif self.objective == "language model":
            source, target = length // 2, length - length // 2
        # With the token that ends the source, and those that begin and end the target, of which the last is not read.
        return training_flops(self.sizes, self.structure, source + 1, target + 1)

    @property
    def steps(self) -> int:
        """Optimiser steps of pre-training that the compute is enough for."""
        if self.objective == "none":
            return 0
        return max(1, round(self.compute * 1e12 / (self.flops_per_pair * self.batch)))


def build(config: PretrainingConfig) -> Any:
    """Compose a new model."""
    return stored_for_adamw(STRUCTURES[config.structure](config.sizes))


def make(config: PretrainingConfig, context: Context) -> None:
    """Train a new model on unlabelled text until its compute is spent, and keep it."""
    model = build(config)
    measured: dict[str, float] = {}
    if config.steps:
        result = train(
            model,
            Rows(config, context.seed)
            if config.whole_rows
            else batches(config, {"text": text_pairs(config)}, {"text": 1.0}, context.seed),
            row_loss if config.whole_rows else pair_loss,
            # Unlike AdaFactor, AdamW needs a warm-up.
            training_of(config.steps, config.learning_rate, InverseSquareRoot(warmup=max(1, config.steps // 10))),
            fabric=context.fabric,
            checkpoint=context.checkpoint,
            log=context.log,
        )
        measured["pretraining_loss"] = float(result.losses[-max(1, config.steps // 10) :].mean())
        measured["pretraining_steps"] = config.steps
        measured["pretraining_flops"] = config.steps * config.batch * config.flops_per_pair
    save_model(model, str(context.folder / _WEIGHTS))
    (context.folder / _MEASURED).write_text(json.dumps(measured), encoding="utf-8")


PRETRAINED = Stage("t5_pretrained", make)
_WEIGHTS, _MEASURED = "model.safetensors", "measured.json"


def pretrained(config: PretrainingConfig, folder: Path) -> tuple[Any, dict[str, float]]:
    """Read a model that was made, and what was measured of its training."""
    model = build(config)
    load_model(model, str(folder / _WEIGHTS))
    return model, json.loads((folder / _MEASURED).read_text(encoding="utf-8"))


def training_of(steps: int, rate: float, schedule: Schedule) -> TrainingConfig:
    """Give how all trainings are done, but for steps, rate and schedule."""
    return TrainingConfig(steps, rate, schedule=schedule, weight_decay=0.0)


def text_pairs(config: PretrainingConfig) -> Draw:
    """Give what draws a row of the unlabelled text and makes a pair of it."""
    sentinels, text = tokenizer(config.words).sentinels, unlabelled(config.words)
    ordinary = range(3, config.vocabulary - config.sentinels)

    def draw(generator: np.random.Generator) -> Pair:
        place = int(generator.integers(len(text) - config.length + 1))
        row = text[place : place + config.length].tolist()
        if config.objective == "deshuffling":
            return deshuffle(row, generator)
        if config.objective == "language model":
            return prefix_language_model(row, generator)
        if config.objective == "bert":
            noise = iid_noise(len(row), generator, rate=config.rate)
            return bert_style(row, noise, generator, mask=sentinels[0], ordinary=ordinary)
        noise = span_noise(len(row), generator, rate=config.rate, mean_span=config.mean_span)
        return replace_spans(row, noise, sentinels=sentinels)

    return draw


class Rows:
    """Whole rows of the unlabelled text, each after the token that begins it, for a language model."""

    def __init__(self, config: PretrainingConfig, seed: int):
        self.text, self.begin = unlabelled(config.words), tokenizer(config.words).padding
        self.length, self.batch, self.seed = config.length, config.batch, seed

    def __call__(self, step: int) -> Tensor:
        """Give the rows of a step."""
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))
        starts = generator.integers(len(self.text) - self.length + 1, size=(self.batch, 1))
        rows = self.text[torch.from_numpy(starts + np.arange(self.length))].long()
        return torch.cat((torch.full((len(rows), 1), self.begin), rows), 1)


def row_loss(model: Any, batch: Tensor) -> Loss:
    """Sum the cross-entropies, in nats, of each token of a row given those before it."""
    return next_token_loss(model.decoder, batch)


def batches(config: PretrainingConfig, drawn: Mapping[str, Draw], rates: Mapping[str, float], seed: int) -> Mixture:
    """Give batches of tasks in this vocabulary."""
    read = tokenizer(config.words)
    return Mixture(drawn, rates, batch=config.batch, begin=read.padding, end=read.end, seed=seed)
