"""The trials: pre-train one model, then fine-tune it on each task with more and more labelled examples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.data import Split
from allyouneed.data.batches import Shuffled
from allyouneed.evidence import Context
from allyouneed.training import Linear, Loss, TrainingConfig, train

from . import tasks
from .bert import Bert, BertConfig, initialise
from .heads import MaskedLanguageModel, PreTraining
from .pretraining import (
    IGNORED,
    Masking,
    Pairs,
    left_to_right_loss,
    mask_tokens,
    masked_loss,
    pretraining_loss,
    words_of,
)
from .tasks import Corpus, Examples, corpus

DRAW: Mapping[str, Callable[[Corpus, Split, int, int, int], Examples]] = {
    "tagging": tasks.tagging,
    "prose": tasks.prose,
    "pairs": tasks.pairs,
}
TEST_SEED = 12_345
"""Of the test examples, which are the same in all trials."""


@dataclass(frozen=True)
class TransferConfig:
    """One arm: how a model is pre-trained, and what it is then tried on.

    Attributes:
        objective: words restored from both sides, words predicted from the left, or no pre-training at all.
        next_sentence: whether it is also trained to say if B follows A.
        masked: share of the chosen tokens that become `[MASK]`.
        random: share that become another token; the rest stay as they are.
        tasks: what it is fine-tuned on.
        features: whether its vectors are also tried unchanged, with a linear layer upon them.
        vocabulary: pieces, learned from the training texts.
        width: of the residual stream.
        layers: number of blocks.
        heads: number of attention heads.
        length: tokens of a row in pre-training.
        batch: rows of a step in pre-training.
        steps: of pre-training.
        learning_rate: of pre-training, at its peak.
        sizes: labelled examples to fine-tune with.
        fine_steps: steps of fine-tuning with each number of examples.
        fine_batch: examples of a step in fine-tuning.
        fine_rate: learning rate of fine-tuning, at its peak.
        longest: tokens of an example, beyond which it is cut.
        tested: test examples of each task.
    """

    objective: Literal["masked", "left to right", "none"] = "masked"
    next_sentence: bool = True
    masked: float = 0.8
    random: float = 0.1
    tasks: tuple[str, ...] = ("tagging", "prose", "pairs")
    features: bool = False
    vocabulary: int = 2048
    width: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 20
    batch: int = 40
    steps: int = 3000
    learning_rate: float = 2e-3
    sizes: tuple[int, ...] = (100, 1000, 5000)
    fine_steps: tuple[int, ...] = (60, 150, 400)
    fine_batch: int = 16
    fine_rate: float = 2e-3
    longest: int = 20
    tested: int = 1000

    @property
    def causal(self) -> bool:
        """Whether left context alone is seen, in fine-tuning too: removing the mask there is worse (section 5.1)."""
        return self.objective == "left to right"

    def encoder(self) -> Bert:
        """Build an encoder; without dropout, since text is seen about twice in pre-training."""
        sizes = BertConfig(
            vocabulary=self.vocabulary,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            hidden=4 * self.width,
            positions=max(self.length, self.longest),
            dropout=0.0,
            attention_dropout=0.0,
            # About the paper's 0.02 at its width of 768.
            deviation=self.width**-0.5 / 2,
        )
        return Bert(sizes)


def trial(config: TransferConfig, context: Context) -> Mapping[str, float]:
    """Pre-train, then fine-tune on each task with each number of examples, and score on held-out texts."""
    source = corpus(config.vocabulary)
    jobs = [(task, place) for task in config.tasks for place in range(len(config.sizes))]
    pretraining = 0 if config.objective == "none" else config.steps
    whole = pretraining + len(config.tasks) * sum(config.fine_steps)
    done = 0

    def log(step: int, steps: int, **values: float) -> None:
        context.log(done + step, whole, **values)

    encoder, metrics = pretrain(config, source, context, log)
    done = pretraining
    encoder.eval()
    for task, place in jobs:
        metrics[f"{task}_{config.sizes[place]}"] = fine_tune(encoder, config, source, task, place, context, log)
        done += config.fine_steps[place]
    for task in config.tasks:
        metrics[task] = sum(metrics[f"{task}_{size}"] for size in config.sizes) / len(config.sizes)
    if config.features:
        metrics["features"] = probe(encoder, config, source, context)
    return metrics


def pretrain(
    config: TransferConfig, source: Corpus, context: Context, log: Callable[..., None]
) -> tuple[Bert, dict[str, float]]:
    """Train an encoder on the unlabelled text of the training split; return it, and its loss at the end."""
    encoder = config.encoder()
    if config.objective == "none":
        return context.fabric.to_device(encoder), {}
    texts = [[sentence.tokens for sentence in text.sentences] for text in source.texts["train"]]
    rows = Pairs(
        texts,
        source.tokenizer,
        config.length,
        config.batch,
        context.seed,
        next_share=0.5 if config.next_sentence else 1.0,
    )
    masking = Masking(masked=config.masked, random=config.random, same=1 - config.masked - config.random)

    def batches(step: int) -> tuple[Tensor, ...]:
        tokens, segments, labels = rows(step)
        if config.causal:
            return tokens, segments
        generator = torch.Generator().manual_seed(context.seed * 1_000_003 + step)
        hidden = mask_tokens(
            tokens,
            words_of(tokens, source.tokenizer),
            generator,
            mask=source.tokenizer.mask,
            vocabulary=config.vocabulary,
            special=source.tokenizer.special_tokens.values(),
            masking=masking,
        )
        return (hidden.tokens, segments, hidden.targets, *((labels,) if config.next_sentence else ()))

    # The encoder of a model without the second task gets a new pooler, as the paper's did.
    model = PreTraining(encoder) if config.next_sentence else MaskedLanguageModel(encoder)
    losses = {"left to right": left_to_right_loss, "masked": masked_loss}
    loss = pretraining_loss if config.next_sentence else losses[config.objective]
    result = train(
        model,
        batches,
        loss,
        settings(config.steps, config.learning_rate),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )
    context.costs["pretraining_step_seconds"] = float(result.step_seconds.median())
    return model.bert, {"pretraining_loss": float(result.losses[-max(1, config.steps // 10) :].mean())}


def settings(steps: int, rate: float) -> TrainingConfig:
    """Give the paper's optimiser and schedule (appendix A.2): a tenth of the steps warms up."""
    return TrainingConfig(
        steps, rate, schedule=Linear(warmup=max(1, steps // 10)), weight_decay=0.01, betas=(0.9, 0.999)
    )


class Tagger(nn.Module):
    """An encoder with one more linear layer: from each token's vector, or from one that stands for the row."""

    def __init__(self, encoder: Bert, config: TransferConfig, labels: int, per_token: bool):
        super().__init__()
        self.bert = config.encoder()
        # Heads drop a pooler that they do not use; here it is new then.
        self.bert.load_state_dict(encoder.state_dict(), strict=False)
        self.classifier = nn.Linear(config.width, labels)
        initialise(self.classifier, self.bert.config.deviation)
        self.causal, self.per_token = config.causal, per_token

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """Give the logits of each token, or of each row."""
        present = tokens != self.bert.config.padding
        hidden = self.bert(tokens, segments, present=present, causal=self.causal)
        if self.per_token:
            return self.classifier(hidden)
        if self.causal:
            # [CLS] has seen nothing: the row is read off the last [SEP], which has seen all of it.
            hidden = hidden[torch.arange(len(hidden)), present.sum(1) - 1][:, None]
        return self.classifier(self.bert.pooled(hidden))


def classification_loss(model: Tagger, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    """Sum the cross-entropies, in nats, of the labels."""
    tokens, segments, labels = trimmed(*batch)
    logits = model(tokens, segments)
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return Loss(total, (labels != IGNORED).sum())


def trimmed(tokens: Tensor, segments: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut off what is padding in every row; token 0 pads."""
    length = int((tokens != 0).sum(1).max())
    return tokens[:, :length], segments[:, :length], labels[:, :length] if labels.ndim == 2 else labels


def fine_tune(
    encoder: Bert,
    config: TransferConfig,
    source: Corpus,
    task: str,
    place: int,
    context: Context,
    log: Callable[..., None],
) -> float:
    """Fine-tune a copy of the encoder on a task with some number of examples; return its accuracy on the test split."""
    draw = DRAW[task]
    torch.manual_seed(context.seed)
    examples = draw(source, "train", config.sizes[place], context.seed, config.longest)
    per_token = examples.labels.ndim == 2
    model = Tagger(encoder, config, len(source.tags) if per_token else 2, per_token)
    train(
        model,
        Shuffled(tuple(examples), min(config.fine_batch, len(examples.tokens)), context.seed),
        classification_loss,
        settings(config.fine_steps[place], config.fine_rate),
        fabric=context.fabric,
        log=log,
    )
    return accuracy(model, draw(source, "test", config.tested, TEST_SEED, config.longest), context)


@torch.no_grad()
def accuracy(model: Tagger, examples: Examples, context: Context) -> float:
    """Give the share of labels that the model finds."""
    model.eval()
    right = asked = 0
    for batch in in_batches(examples):
        tokens, segments, labels = context.fabric.to_device(trimmed(*batch))
        with context.fabric.autocast():
            found = model(tokens, segments).argmax(-1)
        counted = labels != IGNORED
        right += int((found == labels)[counted].sum())
        asked += int(counted.sum())
    return right / asked


def in_batches(examples: Examples, batch: int = 64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut examples into batches, those of about one length together."""
    order = (examples.tokens != 0).sum(1).argsort(stable=True)
    for chosen in order.split(batch):
        yield examples.tokens[chosen], examples.segments[chosen], examples.labels[chosen]


@torch.no_grad()
def features(encoder: Bert, config: TransferConfig, examples: Examples, context: Context) -> tuple[Tensor, Tensor]:
    """Give the outputs of the last four blocks, side by side, of each token that is asked about (section 5.3)."""
    vectors, found = [], []
    for batch in in_batches(examples):
        tokens, segments, labels = context.fabric.to_device(trimmed(*batch))
        with context.fabric.autocast():
            every = list(encoder.layers(tokens, segments, present=tokens != 0, causal=config.causal))[1:][-4:]
        asked = labels != IGNORED
        vectors.append(torch.cat([hidden[asked] for hidden in every], -1).float())
        found.append(labels[asked])
    return torch.cat(vectors), torch.cat(found)


def probe(encoder: Bert, config: TransferConfig, source: Corpus, context: Context) -> float:
    """Train a linear layer on the unchanged vectors of the largest number of examples; return its tagging accuracy."""
    encoder.eval()
    torch.manual_seed(context.seed)
    drawn = (
        tasks.tagging(source, "train", config.sizes[-1], context.seed, config.longest),
        tasks.tagging(source, "test", config.tested, TEST_SEED, config.longest),
    )
    training, test = (features(encoder, config, examples, context) for examples in drawn)
    mean, deviation = training[0].mean(0), training[0].std(0) + 1e-6
    inputs = (training[0] - mean) / deviation
    classifier = nn.Linear(inputs.shape[1], len(source.tags))

    def loss(model: nn.Linear, batch: tuple[Tensor, Tensor]) -> Loss:
        return Loss(F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1]))

    batches = Shuffled((inputs.cpu(), training[1].cpu()), min(256, len(inputs)), context.seed)
    train(classifier, batches, loss, settings(2 * sum(config.fine_steps), 1e-2), fabric=context.fabric)
    with torch.no_grad():
        found = classifier((test[0] - mean) / deviation).argmax(-1)
    return float((found == test[1]).float().mean())
