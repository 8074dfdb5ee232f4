"""The trials: fine-tune a pre-trained model on each task, or train one on all tasks at once."""

import dataclasses
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from allyouneed.data import Split
from allyouneed.data.buckets import pad
from allyouneed.data.tasks import Task
from allyouneed.evidence import Context
from allyouneed.training import InverseSquareRoot, Linear, evaluate, train

from .mixing import Draw, Mixture, mixing_rates, one_of
from .objectives import Pair, finished
from .pretraining import PRETRAINED, PretrainingConfig, batches, build, pair_loss, pretrained, text_pairs, training_of
from .tasks import exact_match, write_answers
from .texts import held_out, tokenizer, training


@dataclass(frozen=True)
class TransferConfig(PretrainingConfig):
    """One arm: what is pre-trained on what, and how it is put to tasks.

    Attributes:
        mixture: whether objective and tasks are mixed from the start, and nothing is fine-tuned.
        blind: whether every input of a task is replaced by the task's name, in fine-tuning and in what is scored.
        labelled: examples of each task to fine-tune with.
        fine_steps: steps of fine-tuning on each task.
        fine_rate: learning rate of fine-tuning, at its peak.
        limit: K of the mixture, in examples.
        longest: tokens of an example's input; longer examples are left out, of training and test alike.
        tested: test examples of each task, at most.
        split: that they are of.
    """

    mixture: bool = False
    blind: bool = False
    labelled: int = 2000
    fine_steps: int = 240
    fine_rate: float = 4e-3
    limit: int = 8000
    longest: int = 56
    tested: int = 300
    split: Split = "test"

    @property
    def pretraining(self) -> PretrainingConfig:
        """What of it decides the pre-trained model."""
        names = [field.name for field in dataclasses.fields(PretrainingConfig)]
        return PretrainingConfig(**{name: getattr(self, name) for name in names})

    @property
    def mixture_steps(self) -> int:
        """Steps of training on a mixture: as many as pre-training and all fine-tunings together."""
        return self.steps + self.fine_steps * len(self.tasks)


def trial(config: TransferConfig, context: Context) -> Mapping[str, float]:
    """Fine-tune a copy of the pre-trained model on each task, and score it; or train on the mixture, and score that."""
    fine = config.fine_steps * len(config.tasks)
    done, whole = 0, config.mixture_steps if config.mixture else fine

    def log(step: int, steps: int, **values: float) -> None:
        context.log(done + step, whole, **values)

    if config.mixture:
        model, metrics = train_on_mixture(config, context, log)
    else:
        model, metrics = pretrained(config, context.stage(PRETRAINED, config.pretraining))
        context.fabric.to_device(model)
    metrics["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    for task in config.tasks:
        tuned = model if config.mixture else fine_tune(model, config, task, context, log)
        metrics[f"{task}_loss"] = answer_loss(tuned, config, task, context)
        metrics[f"{task}_match"] = match(tuned, config, task)
        metrics[f"{task}_majority"] = majority(config, task)
        done += config.fine_steps
    for kind in ("loss", "match"):
        metrics[kind] = sum(metrics[f"{task}_{kind}"] for task in config.tasks) / len(config.tasks)
    return metrics


def train_on_mixture(
    config: TransferConfig, context: Context, log: Callable[..., None]
) -> tuple[Any, dict[str, float]]:
    """Train a new model on text and all tasks at once (section 3.5.2); return it and what it took."""
    model, steps = build(config), config.mixture_steps
    result = train(
        model,
        mixture(config, context.seed),
        pair_loss,
        training_of(steps, config.learning_rate, InverseSquareRoot(warmup=max(1, steps // 10))),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )
    return model, {"pretraining_loss": float(result.losses[-max(1, steps // 10) :].mean()), "pretraining_steps": steps}


def mixture(config: TransferConfig, seed: int) -> Mixture:
    """Give batches of unlabelled text and of all tasks."""
    drawn: dict[str, Draw] = {"text": text_pairs(config)}
    sizes: dict[str, float] = {"text": float("inf")}
    for task in config.tasks:
        pairs = labelled(config, task, seed)
        drawn[task], sizes[task] = one_of(pairs), len(pairs)
    return batches(config, drawn, mixing_rates(sizes, limit=config.limit), seed)


def fine_tune(model: Any, config: TransferConfig, task: str, context: Context, log: Callable[..., None]) -> nn.Module:
    """Train a copy of the model on a task, all of it; the loss is that of the answers alone, in every structure."""
    tuned = deepcopy(model)
    train(
        tuned,
        batches(config, {task: one_of(labelled(config, task, context.seed))}, {task: 1.0}, context.seed),
        pair_loss,
        training_of(config.fine_steps, config.fine_rate, Linear(warmup=max(1, config.fine_steps // 10))),
        fabric=context.fabric,
        log=log,
    )
    return tuned


def labelled(config: TransferConfig, task: str, seed: int) -> list[Pair]:
    """Draw a task's labelled examples."""
    pool = training(config.words, task, config.longest)
    order = np.random.default_rng(seed).permutation(len(pool))[: config.labelled]
    pairs = [pool[place] for place in order.tolist()]
    return [Pair(name_of(config, task), pair.target) for pair in pairs] if config.blind else pairs


def name_of(config: TransferConfig, task: str) -> list[int]:
    """Encode what a blind model reads."""
    return tokenizer(config.words).encode(task.replace("_", " "))


def scored(config: TransferConfig, task: str) -> tuple[Task, tuple[list[int], ...]]:
    """Give the examples that are scored, and what a model reads of each."""
    test, sources = held_out(config.words, task, config.longest, config.tested, config.split)
    return test, (name_of(config, task),) * len(sources) if config.blind else sources


def majority(config: TransferConfig, task: str) -> float:
    """Give the share of the scored examples that the commonest answer of training is right for."""
    test, _ = scored(config, task)
    answers = [tuple(pair.target) for pair in training(config.words, task, config.longest)]
    read = tokenizer(config.words)
    commonest = read.decode(list(max(set(answers), key=answers.count)))
    return exact_match([commonest] * len(test.examples), test, read)


def answer_loss(model: Any, config: TransferConfig, task: str, context: Context) -> float:
    """Give the mean cross-entropy, in nats, of the tokens of right answers to held-out examples, with their ends."""
    read = tokenizer(config.words)
    test, sources = scored(config, task)
    answers = [read.encode(example.answers[0]) for example in test.examples]
    ended, targets = finished(map(Pair, sources, answers), begin=read.padding, end=read.end)
    parts = [slice(start, start + 64) for start in range(0, len(ended), 64)]
    padded = [(pad(ended[part], read.padding), pad(targets[part], read.padding)) for part in parts]
    return evaluate(model, padded, pair_loss, fabric=context.fabric)


def match(model: Any, config: TransferConfig, task: str) -> float:
    """Give the share of held-out examples that the model answers right, by greedy decoding."""
    read = tokenizer(config.words)
    test, sources = scored(config, task)
    return exact_match(write_answers(model, read, sources, limit=12, batch=128), test, read)
