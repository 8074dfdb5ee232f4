"""The trials: pre-train a model once, then fine-tune it on each task, or train it on all of them at once."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from allyouneed.data import Split
from allyouneed.data.buckets import pad
from allyouneed.evidence import Context
from allyouneed.papers.transformer import translation_loss
from allyouneed.training import (
    InverseSquareRoot,
    Linear,
    Loss,
    Schedule,
    TrainingConfig,
    evaluate,
    next_token_loss,
    train,
)

from .adamw import stored_for_adamw
from .config import T5Config
from .mixing import Draw, Mixture, mixing_rates, one_of
from .objectives import (
    Pair,
    bert_style,
    deshuffle,
    finished,
    iid_noise,
    prefix_language_model,
    replace_spans,
    span_noise,
)
from .structures import STRUCTURES, training_flops
from .tasks import exact_match, write_answers
from .texts import Vocabulary, held_out, tokenizer, training, unlabelled

pair_loss = partial(translation_loss, padding=0)
"""Sums the cross-entropies of targets given sources; token 0 pads."""


@dataclass(frozen=True)
class TransferConfig:
    """One arm: what is pre-trained on what, and how it is put to tasks.

    Attributes:
        structure: a name in `STRUCTURES`.
        objective: of pre-training. "bert" restores all of a row of which some tokens are masked, "spans" the hidden
            ones alone, "deshuffling" a shuffled row; "language model" goes on from a random place, or in the structure
            of that name from the beginning.
        mixture: whether objective and tasks are mixed from the start, and nothing is fine-tuned.
        tasks: what models are put to.
        vocabulary: tokens, the sentinels among them.
        sentinels: how many there are.
        width: of the residual stream.
        layers: of each stack.
        heads: of attention.
        head_width: of each head.
        length: tokens of text that a pair is made of in pre-training.
        batch: pairs of a step, in pre-training, fine-tuning and on a mixture.
        compute: of pre-training, in 10¹² floating-point operations; how many steps that is depends on the pairs.
        learning_rate: of pre-training, or of training on a mixture, at its peak.
        rate: share of tokens that is corrupted.
        mean_span: tokens of a hidden span on average.
        labelled: examples of each task to fine-tune with.
        fine_steps: steps of fine-tuning on each task.
        fine_rate: learning rate of fine-tuning, at its peak.
        limit: K of the mixture, in examples.
        longest: tokens of an example's input; longer examples are left out, of training and test alike.
        tested: test examples of each task, at most.
    """

    structure: str = "encoder-decoder"
    objective: Literal["bert", "spans", "deshuffling", "language model", "none"] = "bert"
    mixture: bool = False
    tasks: tuple[str, ...] = ("sentiment", "question_type", "qasc_overlap", "qasc_right")
    vocabulary: int = 1024
    sentinels: int = 24
    width: int = 64
    layers: int = 2
    heads: int = 4
    head_width: int = 16
    length: int = 48
    batch: int = 12
    compute: float = 0.3
    learning_rate: float = 3e-3
    rate: float = 0.15
    mean_span: float = 3.0
    labelled: int = 2000
    fine_steps: int = 120
    fine_rate: float = 2e-3
    limit: int = 8000
    longest: int = 56
    tested: int = 300

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


def trial(config: TransferConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Pre-train, fine-tune a copy on each task, and score it; or train on the mixture, and score that on each task."""
    whole = config.steps + config.fine_steps * (1 if config.mixture else len(config.tasks))
    done = 0

    def log(step: int, steps: int, **values: float) -> None:
        context.log(done + step, whole, **values)

    model, metrics = pretrain(config, context, log)
    done = config.steps
    for task in config.tasks:
        tuned = model if config.mixture else fine_tune(model, config, task, context, log)
        metrics[f"{task}_loss"] = answer_loss(tuned, config, task, split, context)
        metrics[f"{task}_match"] = match(tuned, config, task, split)
        done += config.fine_steps
    for kind in ("loss", "match"):
        metrics[kind] = sum(metrics[f"{task}_{kind}"] for task in config.tasks) / len(config.tasks)
    return metrics


def build(config: TransferConfig) -> Any:
    """Compose an arm's model."""
    return stored_for_adamw(STRUCTURES[config.structure](config.sizes))


def pretrain(config: TransferConfig, context: Context, log: Callable[..., None]) -> tuple[Any, dict[str, float]]:
    """Train a new model, on unlabelled text until its compute is spent or on the mixture; return it and what it took.

    The mixture has as many steps as pre-training and fine-tuning on one task together (section 3.5.2, Table 11).
    """
    model = build(config)
    metrics: dict[str, float] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if config.objective == "none":
        return context.fabric.to_device(model), metrics
    steps = config.steps + (config.fine_steps if config.mixture else 0)
    result = train(
        model,
        Rows(config, context.seed) if config.whole_rows else mixed(config, context.seed),
        row_loss if config.whole_rows else pair_loss,
        # Unlike AdaFactor, AdamW needs a warm-up.
        training_of(config, steps, config.learning_rate, InverseSquareRoot(warmup=max(1, steps // 10))),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )
    context.costs["pretraining_seconds"] = result.seconds
    metrics["pretraining_loss"] = float(result.losses[-max(1, steps // 10) :].mean())
    metrics["pretraining_steps"] = steps
    if not config.mixture:
        metrics["pretraining_flops"] = steps * config.batch * config.flops_per_pair
    return model, metrics


def training_of(config: TransferConfig, steps: int, rate: float, schedule: Schedule) -> TrainingConfig:
    """Give how all trainings are done, but for steps, rate and schedule."""
    return TrainingConfig(steps, rate, schedule=schedule, weight_decay=0.0)


def mixed(config: TransferConfig, seed: int) -> Mixture:
    """Give batches of unlabelled text, and where the arm is a mixture of all tasks too."""
    drawn: dict[str, Draw] = {"text": text_pairs(config)}
    sizes: dict[str, float] = {"text": float("inf")}
    if config.mixture:
        for task in config.tasks:
            pairs = labelled(config, task, seed)
            drawn[task], sizes[task] = one_of(pairs), len(pairs)
    return batches(config, drawn, mixing_rates(sizes, limit=config.limit), seed)


def text_pairs(config: TransferConfig) -> Draw:
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

    def __init__(self, config: TransferConfig, seed: int):
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


def fine_tune(model: Any, config: TransferConfig, task: str, context: Context, log: Callable[..., None]) -> nn.Module:
    """Train a copy of the model on a task, all of it; the loss is that of the answers alone, in every structure."""
    tuned = deepcopy(model)
    train(
        tuned,
        batches(config, {task: one_of(labelled(config, task, context.seed))}, {task: 1.0}, context.seed),
        pair_loss,
        training_of(config, config.fine_steps, config.fine_rate, Linear(warmup=max(1, config.fine_steps // 10))),
        fabric=context.fabric,
        log=log,
    )
    return tuned


def labelled(config: TransferConfig, task: str, seed: int) -> list[Pair]:
    """Draw a task's labelled examples."""
    pool = training(config.words, task, config.longest)
    order = np.random.default_rng(seed).permutation(len(pool))[: config.labelled]
    return [pool[place] for place in order.tolist()]


def batches(config: TransferConfig, drawn: Mapping[str, Draw], rates: Mapping[str, float], seed: int) -> Mixture:
    """Give batches of tasks in this vocabulary."""
    read = tokenizer(config.words)
    return Mixture(drawn, rates, batch=config.batch, begin=read.padding, end=read.end, seed=seed)


def answer_loss(model: Any, config: TransferConfig, task: str, split: Split, context: Context) -> float:
    """Give the mean cross-entropy, in nats, of the tokens of right answers to held-out examples, with their ends."""
    read = tokenizer(config.words)
    test, sources = held_out(config.words, task, config.longest, config.tested, split)
    answers = [read.encode(example.answers[0]) for example in test.examples]
    ended, targets = finished(map(Pair, sources, answers), begin=read.padding, end=read.end)
    parts = [slice(start, start + 64) for start in range(0, len(ended), 64)]
    padded = [(pad(ended[part], read.padding), pad(targets[part], read.padding)) for part in parts]
    return evaluate(model, padded, pair_loss, fabric=context.fabric)


def match(model: Any, config: TransferConfig, task: str, split: Split) -> float:
    """Give the share of held-out examples that the model answers right, by greedy decoding."""
    read = tokenizer(config.words)
    test, sources = held_out(config.words, task, config.longest, config.tested, split)
    return exact_match(write_answers(model, read, sources, limit=12, batch=128), test, read)
