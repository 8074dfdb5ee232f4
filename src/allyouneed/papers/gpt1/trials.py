"""The trials: take a seed's pre-trained model, and fine-tune it, whole and in part."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from allyouneed.data import Split
from allyouneed.evidence import Context
from allyouneed.training import Linear, Loss, TrainingConfig, train

from .baselines import Bigrams, bag_of_words, majority
from .batches import OfOneLength, in_order_of_length, trimmed
from .fine_tuning import Body, Chooser, FineTuned, fine_tuning_loss, transfer
from .inputs import Examples
from .pretraining import PARTS, PRETRAINED, PretrainingConfig
from .tasks import Corpus, corpus, labelled
from .zero_shot import likelihoods, pairs, preferred

SCORED_SEED = 12_345
"""Of the examples that are scored, which are the same in all trials."""
WHOLE = PARTS[-1]
"""Eighths of pre-training that there are."""


@dataclass(frozen=True)
class TransferConfig:
    """One arm: what is pre-trained, and what it is then tried on.

    Attributes:
        model: the transformer, or LSTM cells with as many parameters.
        pretrained: whether the pre-trained weights are used; if not, those of the start are.
        auxiliary: λ, the weight of the language model's loss in fine-tuning.
        ablations: whether it is also fine-tuned with fewer layers transferred and with less pre-training, and the
            trivial baselines are measured.
        learning_rate: of pre-training, at its peak; each model's own.
        fine_rate: of fine-tuning, at its peak; each model's own, whether it is pre-trained or not.
        vocabulary: byte pairs, learned from the unlabelled text.
        share: of each novel and address that is read.
        width: of embeddings, and of the transformer's residual stream.
        layers: blocks.
        heads: attention heads.
        cells: LSTM layers.
        cell_width: width of their states, by which both models have as many parameters.
        length: tokens of a row, in pre-training and in fine-tuning.
        batch: rows of a step of pre-training.
        steps: of pre-training.
        examples: labelled.
        epochs: passes over them.
        fine_batch: examples of a step of fine-tuning.
        dropout: in fine-tuning; unlabelled text is seen about once, and needs none.
        scored: examples to score, where there are as many.
        split: that they are of.
    """

    model: Literal["transformer", "lstm"] = "transformer"
    pretrained: bool = True
    auxiliary: float = 0.5
    ablations: bool = False
    learning_rate: float = 6e-3
    fine_rate: float = 2e-3
    vocabulary: int = 1024
    share: float = 0.5
    width: int = 48
    layers: int = 3
    heads: int = 4
    cells: int = 1
    cell_width: int = 120
    length: int = 48
    batch: int = 12
    steps: int = 6000
    examples: int = 2000
    epochs: int = 10
    fine_batch: int = 16
    dropout: float = 0.1
    scored: int = 2000
    split: Split = "test"

    @property
    def pretraining(self) -> PretrainingConfig:
        """What of it decides the pre-trained model, which all arms of one model share."""
        names = [field.name for field in dataclasses.fields(PretrainingConfig)]
        return PretrainingConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        prefix: of the names of what is measured.
        part: eighths of pre-training that the weights have had.
        layers: blocks that are transferred; None for all that there are.
    """

    prefix: str = ""
    part: int = WHOLE
    layers: int | None = None


def jobs(config: TransferConfig) -> list[Job]:
    """List what an arm is fine-tuned for."""
    found = [Job()]
    if config.ablations:
        found += [Job(f"layers_{count}_", layers=count) for count in range(config.layers)]
        found += [Job(f"part_{part}_", part) for part in PARTS[1:-1]]
    return found


def trial(config: TransferConfig, context: Context) -> Mapping[str, float]:
    """Ask the pre-trained models without fine-tuning, then fine-tune them, and score on held-out examples."""
    source = corpus(config.vocabulary, config.share)
    folder = context.stage(PRETRAINED, config.pretraining)
    metrics = {"parameters": float(sum(value.numel() for value in config.pretraining.load(folder, 0).parameters()))}
    examples, scored = drawn(config, source, context.seed)
    asked = pairs(scored, source.special)
    for part in PARTS if config.pretrained else (0,):
        body = config.pretraining.load(folder, part).eval()
        metrics[f"zero_shot_{part}"] = preferred(body, asked)
        metrics[f"held_out_nats_{part}"] = held_out_nats(body, asked)
    if config.ablations:
        metrics["majority"] = majority(scored)
        metrics["bag_of_words"] = bag_of_words(examples, scored, config.vocabulary)
        metrics["bigrams"] = preferred(Bigrams(source.tokens, config.vocabulary), asked)
    planned = jobs(config)

    def log(place: int, step: int, steps: int, **values: float) -> None:
        context.log(place * steps + step, len(planned) * steps, **values)

    for place, job in enumerate(planned):
        body = config.pretraining.load(folder, job.part)
        metrics |= fine_tune(body, config, source, job, context, partial(log, place))
    return metrics


@torch.no_grad()
def held_out_nats(body: Body, asked: Sequence[tuple[list[int], list[int]]]) -> float:
    """Give the language model's loss a token on the scored beginnings of sentences as they were written."""
    rows = [original for original, _ in asked]
    found = [likelihoods(body, rows[start : start + 64]) for start in range(0, len(rows), 64)]
    return -float(torch.cat(found).mean())


def drawn(config: TransferConfig, source: Corpus, seed: int) -> tuple[Examples, Examples]:
    """Give the labelled examples to fine-tune on and those to score, which no seed changes."""
    return (
        labelled("train", source, seed, config.length, config.examples),
        labelled(config.split, source, SCORED_SEED, config.length, config.scored),
    )


def fine_steps(config: TransferConfig) -> int:
    """Steps of each fine-tuning."""
    return max(1, config.examples * config.epochs // config.fine_batch)


def fine_tune(
    pretrained: Body, config: TransferConfig, source: Corpus, job: Job, context: Context, log: Callable[..., None]
) -> dict[str, float]:
    """Fine-tune a copy of a model; return what it then scores on held-out examples."""
    torch.manual_seed(context.seed)
    body = config.pretraining.build(config.vocabulary + len(source.special), config.dropout)
    if config.pretrained:
        transfer(pretrained, body, job.layers)
    body.to(context.fabric.device)
    model = Chooser(body, dropout=config.dropout)
    examples, scored = drawn(config, source, context.seed)
    steps = fine_steps(config)
    train(
        model,
        OfOneLength(examples, min(config.fine_batch, len(examples.labels)), context.seed),
        partial(loss_of, auxiliary=config.auxiliary),
        TrainingConfig(
            steps,
            config.fine_rate,
            schedule=Linear(warmup=max(1, steps // 10)),
            weight_decay=0.01,
            betas=(0.9, 0.999),
        ),
        fabric=context.fabric,
        log=log,
    )
    return {f"{job.prefix}{name}": value for name, value in score(model, scored, context).items()}


def loss_of(model: FineTuned, batch: tuple[Tensor, Tensor], *, auxiliary: float) -> Loss:
    """Give the loss of a batch without the padding that all its rows have."""
    tokens, labels = batch
    return fine_tuning_loss(model, (trimmed(tokens), labels), auxiliary=auxiliary)


@torch.no_grad()
def score(model: FineTuned, examples: Examples, context: Context) -> dict[str, float]:
    """Give the share of examples of which the model finds the label, and its loss on labels and on tokens, in nats."""
    model.to(context.fabric.device).eval()
    right, nats, words, batches = 0, 0.0, 0.0, 0
    for tokens, labels in in_order_of_length(examples):
        tokens, labels = context.fabric.to_device((trimmed(tokens), labels))
        with context.fabric.autocast():
            logits = model(tokens).float()
        total = float(F.cross_entropy(logits, labels, reduction="sum"))
        # With λ = 1 the language model's mean is added, once an example.
        words += (float(fine_tuning_loss(model, (tokens, labels), auxiliary=1.0).total) - total) / len(labels)
        right += int((logits.argmax(-1) == labels).sum())
        nats += total
        batches += 1
    return {
        "accuracy": right / len(examples.labels),
        "nats": nats / len(examples.labels),
        "language_nats": words / batches,
    }
