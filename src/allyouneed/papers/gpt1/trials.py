"""The trials: pre-train one model, then fine-tune it on four tasks with more and more labelled examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allyouneed.data import Split
from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import Context
from allyouneed.training import Cosine, Linear, Loss, TrainingConfig, next_token_loss, train

from .batches import OfOneLength, in_order_of_length, trimmed
from .fine_tuning import Body, Chooser, Classifier, FineTuned, fine_tuning_loss, transfer
from .gpt1 import GPT1, GPT1Config
from .inputs import Examples
from .recurrent import RecurrentLanguageModel
from .tasks import LABELS, TASKS, Corpus, corpus, labelled

SCORED_SEED = 12_345
"""Of the examples that are scored, which are the same in all trials."""
AMOUNTS = ("few", "some", "most")
"""What the numbers of labelled examples are called in metrics."""
CURVE = "choice"
"""The task of the curve over the layers: the counterpart of RACE in Figure 2."""
ALONE = ("sentiment", "choice")
"""Tasks that are fine-tuned without the auxiliary loss as well."""
WARM_UP = 0.3
"""Share of the steps of pre-training: with a tenth a post-norm model learns little at rates that are good otherwise."""


@dataclass(frozen=True)
class TransferConfig:
    """One arm: what is pre-trained, and what it is then tried on.

    Attributes:
        model: the transformer, or LSTM cells with as many parameters.
        pretrained: whether it is pre-trained at all.
        auxiliary: λ, the weight of the language model's loss in fine-tuning.
        ablations: whether it is also fine-tuned without that loss, and with fewer of its layers transferred.
        learning_rate: of pre-training, at its peak; each arm's own.
        fine_rate: of fine-tuning, at its peak; each arm's own.
        vocabulary: byte pairs, learned from the unlabelled text.
        share: of each novel and address that is read.
        width: of embeddings, and of the transformer's residual stream.
        layers: blocks.
        heads: attention heads.
        cells: LSTM cells on top of each other.
        cell_width: width of their states, by which both models have as many parameters.
        length: tokens of a row, in pre-training and in fine-tuning.
        batch: rows of a step of pre-training.
        steps: of pre-training.
        sizes: labelled examples to fine-tune with: few, some and most.
        epochs: passes over each of these numbers of examples.
        fine_batch: examples of a step of fine-tuning.
        dropout: in fine-tuning; unlabelled text is seen about once, and needs none.
        scored: examples of each task to score, where there are as many.
        split: that they are of.
    """

    model: Literal["transformer", "lstm"] = "transformer"
    pretrained: bool = True
    auxiliary: float = 0.5
    ablations: bool = False
    learning_rate: float = 4e-3
    fine_rate: float = 1e-3
    vocabulary: int = 2048
    share: float = 0.25
    width: int = 48
    layers: int = 3
    heads: int = 4
    cells: int = 1
    cell_width: int = 120
    length: int = 64
    batch: int = 8
    steps: int = 1500
    sizes: tuple[int, int, int] = (100, 1000, 4000)
    epochs: tuple[int, int, int] = (6, 2, 1)
    fine_batch: int = 16
    dropout: float = 0.1
    scored: int = 1000
    split: Split = "test"

    def __post_init__(self) -> None:
        if not 0 < self.sizes[0] < self.sizes[1] < self.sizes[2]:
            raise ValueError(f"sizes {self.sizes}: there must be few, some and most examples, more each time")

    @property
    def deviation(self) -> float:
        """Of initial weights: about the paper's 0.02 at its width of 768."""
        return self.width**-0.5 / 2

    def build(self, tokens: int, dropout: float) -> Body:
        """Build a new model over so many tokens."""
        if self.model == "lstm":
            return RecurrentLanguageModel(
                tokens, self.width, self.cell_width, layers=self.cells, dropout=dropout, deviation=self.deviation
            )
        return GPT1(
            GPT1Config(
                vocabulary=tokens,
                positions=self.length,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                embedding_dropout=dropout,
                attention_dropout=dropout,
                residual_dropout=dropout,
                deviation=self.deviation,
            )
        )

    def fine_steps(self, amount: int) -> int:
        """Steps of fine-tuning with the number of examples that stands at a place in `sizes`."""
        return max(1, self.sizes[amount] * self.epochs[amount] // self.fine_batch)


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        metric: what its accuracy is called.
        task: what it is fine-tuned on.
        amount: place of the number of labelled examples in `sizes`.
        auxiliary: λ.
        layers: blocks that are transferred; None for all that there is.
    """

    metric: str
    task: str
    amount: int
    auxiliary: float
    layers: int | None = None


def jobs(config: TransferConfig) -> list[Job]:
    """List what an arm is fine-tuned for."""
    amounts = list(enumerate(AMOUNTS))
    found = [Job(f"{task}_{name}", task, amount, config.auxiliary) for task in TASKS for amount, name in amounts]
    if config.ablations:
        found += [Job(f"alone_{task}_{name}", task, amount, 0.0) for task in ALONE for amount, name in amounts]
        most = len(AMOUNTS) - 1
        found += [Job(f"layers_{count}", CURVE, most, config.auxiliary, count) for count in range(config.layers)]
    return found


def trial(config: TransferConfig, context: Context) -> Mapping[str, float]:
    """Pre-train, fine-tune on each task with each number of examples, and score on held-out examples."""
    source = corpus(config.vocabulary, config.share)
    planned = jobs(config)
    pretraining = config.steps if config.pretrained else 0
    whole = pretraining + sum(config.fine_steps(job.amount) for job in planned)
    done = 0

    def log(step: int, steps: int, **values: float) -> None:
        context.log(done + step, whole, **values)

    body, metrics = pretrain(config, source, context, log)
    done = pretraining
    for job in planned:
        metrics[job.metric] = fine_tune(body, config, source, job, context, log)
        done += config.fine_steps(job.amount)
    return metrics | summary(config, metrics)


def summary(config: TransferConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """Give the means, differences and slopes that claims are about."""
    found = {task: mean(metrics[f"{task}_{name}"] for name in AMOUNTS) for task in TASKS}
    found |= {f"average_{name}": mean(metrics[f"{task}_{name}"] for task in TASKS) for name in AMOUNTS}
    whole = metrics[f"{CURVE}_{AMOUNTS[-1]}"]
    if not config.ablations:
        # Under the name of what embeddings alone are worth to a pre-trained model, with which it is paired.
        return found | {"layers_0": whole}
    gains = [mean(metrics[f"{task}_{name}"] - metrics[f"alone_{task}_{name}"] for task in ALONE) for name in AMOUNTS]
    curve = [*(metrics[f"layers_{count}"] for count in range(config.layers)), whole]
    return {
        **found,
        **{f"auxiliary_gain_{name}": gain for name, gain in zip(AMOUNTS, gains, strict=True)},
        "auxiliary_slope": slope(np.log10(config.sizes), gains),
        f"layers_{config.layers}": whole,
        "layer_slope": slope(range(len(curve)), curve),
    }


def slope(x: npt.ArrayLike, y: Sequence[float]) -> float:
    """Give the slope of the least-squares line."""
    return float(np.polyfit(np.asarray(x, dtype=float), np.asarray(y), 1)[0])


def pretrain(
    config: TransferConfig, source: Corpus, context: Context, log: Callable[..., None]
) -> tuple[Body | None, dict[str, float]]:
    """Train a language model on the unlabelled text; return it, and its loss at the end."""
    model = config.build(config.vocabulary, 0.0)
    found: dict[str, float] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if not config.pretrained:
        return None, found
    result = train(
        model,
        RandomWindows(source.tokens, config.length, config.batch, context.seed),
        next_token_loss,
        TrainingConfig(
            config.steps,
            config.learning_rate,
            schedule=Cosine(warmup=max(1, int(WARM_UP * config.steps))),
            weight_decay=0.01,
            betas=(0.9, 0.999),
        ),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )
    context.costs["pretraining_step_seconds"] = float(result.step_seconds.median())
    found["pretraining_loss"] = float(result.losses[-max(1, config.steps // 10) :].mean())
    return model, found


def head_of(config: TransferConfig, body: Body, task: str) -> FineTuned:
    """Put a new head for a task upon a model."""
    if task in LABELS:
        return Classifier(body, LABELS[task], dropout=config.dropout)
    return Chooser(body, dropout=config.dropout)


def fine_tune(
    pretrained: Body | None,
    config: TransferConfig,
    source: Corpus,
    job: Job,
    context: Context,
    log: Callable[..., None],
) -> float:
    """Fine-tune a copy of a model on a task with some number of examples; return its accuracy on held-out ones."""
    torch.manual_seed(context.seed)
    body = config.build(config.vocabulary + len(source.special), config.dropout)
    if pretrained is not None:
        transfer(pretrained, body.to(context.fabric.device), job.layers)
    model = head_of(config, body, job.task)
    # The most examples are drawn, of which fewer are the first.
    drawn = labelled(job.task, "train", source, context.seed, config.length, max(config.sizes))
    examples = Examples(*(part[: config.sizes[job.amount]] for part in drawn))
    steps = config.fine_steps(job.amount)
    train(
        model,
        OfOneLength(examples, min(config.fine_batch, len(examples.labels)), context.seed),
        partial(loss_of, auxiliary=job.auxiliary),
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
    return accuracy(model, labelled(job.task, config.split, source, SCORED_SEED, config.length, config.scored), context)


def loss_of(model: FineTuned, batch: tuple[Tensor, Tensor], *, auxiliary: float) -> Loss:
    """Give the loss of a batch without the padding that all its rows have."""
    tokens, labels = batch
    return fine_tuning_loss(model, (trimmed(tokens), labels), auxiliary=auxiliary)


@torch.no_grad()
def accuracy(model: FineTuned, examples: Examples, context: Context) -> float:
    """Give the share of examples of which the model finds the label."""
    model.to(context.fabric.device).eval()
    right = 0
    for tokens, labels in in_order_of_length(examples):
        tokens, labels = context.fabric.to_device((trimmed(tokens), labels))
        with context.fabric.autocast():
            right += int((model(tokens).argmax(-1) == labels).sum())
    return right / len(examples.labels)
