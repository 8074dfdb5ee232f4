"""One trial of translation: train an arm with the compute that it may use, and measure it on held-out verses."""

import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from sacrebleu import corpus_bleu
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.data import Split, verses
from allyouneed.data.buckets import Buckets, in_order_of_length
from allyouneed.evidence import Context
from allyouneed.nn import EncoderDecoder, LearnedPositions, PositionScheme, RecurrentEncoderDecoder, SinusoidalPositions
from allyouneed.text import BytePairTokenizer
from allyouneed.training import InverseSquareRoot, Loss, Snapshots, TrainingConfig, evaluate, train

from .exhibits import leave_exhibits
from .transformer import transformer
from .translation import PADDING, encoded_pairs, shared_tokenizer, translate, translation_loss

# More positions than a held-out verse has tokens and 50 more.
LEARNED_POSITIONS = 512
# The weights that are averaged: those at so many steps, evenly over the last part of the steps.
AVERAGED, AVERAGED_PART = 5, 0.2
# Compute is counted on a few small batches and taken by the token, whose price hardly depends on its company.
COUNTED_BATCHES, COUNTED_TOKENS = 6, 512


@dataclass(frozen=True)
class TranslationConfig:
    """One arm.

    Attributes:
        model: attention alone, or GRUs with additive attention.
        positions: of the Transformer: sines, a learned table, or none.
        heads: of the Transformer, in each attention.
        smoothing: of the labels in training; never in what is measured.
        width: of embeddings and of the residual stream or the GRUs' states.
        layers: of each stack, the encoder's and the decoder's.
        dropout: probability of dropping a coordinate.
        vocabulary: byte pairs of both languages together.
        words: the longest verse, in either language.
        training_pairs: how many verses are trained on; all where None.
        step_tokens: the most tokens of one language in a batch.
        teraflops: training compute in 10¹² floating-point operations, counted, forward and backward.
        learning_rate: at its peak; the best of a grid that every arm was given (see the readme).
        warmup: share of the steps until the peak; the best of two.
        points: at which shares of the training its weights are measured; the last is 1.
        evaluated: held-out verses that are translated; all where None.
        beam: of the search that translates them.
    """

    model: Literal["transformer", "gru"] = "transformer"
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    heads: int = 4
    smoothing: float = 0.1
    width: int = 128
    layers: int = 1
    dropout: float = 0.0
    vocabulary: int = 3000
    words: int = 22
    training_pairs: int | None = None
    step_tokens: int = 256
    teraflops: float = 3.5
    learning_rate: float = 2e-3
    warmup: float = 0.3
    points: tuple[float, ...] = (1.0,)
    evaluated: int | None = None
    beam: int = 4


Model = EncoderDecoder | RecurrentEncoderDecoder


def build(config: TranslationConfig) -> Model:
    """Compose the model; both kinds share one embedding table among source, target and output."""
    positions = {
        "sinusoidal": SinusoidalPositions,
        "learned": partial(LearnedPositions, LEARNED_POSITIONS),
        "none": lambda width: PositionScheme(),
    }[config.positions]
    return {
        "transformer": lambda: transformer(
            config.vocabulary,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
            positions=positions,
        ),
        "gru": lambda: RecurrentEncoderDecoder(
            config.vocabulary,
            config.vocabulary,
            config.width,
            encoder_layers=config.layers,
            decoder_layers=config.layers,
            shared=True,
            embedding_scale=math.sqrt(config.width),
            dropout=config.dropout,
        ),
    }[config.model]()


@cache
def pairs(split: Split, words: int, most: int | None) -> tuple[tuple[str, str], ...]:
    """Give the verses of a split that are short enough, the first of them where there is a most."""
    short = (pair for pair in verses(split) if max(len(text.split()) for text in pair) <= words)
    return tuple(short)[:most]


@cache
def tokenizer(vocabulary: int, words: int, most: int | None) -> BytePairTokenizer:
    """Learn the vocabulary from the verses that are trained on."""
    return shared_tokenizer(pairs("train", words, most), vocabulary)


def flops_per_token(model: Model, sides: Sequence[Sequence[Sequence[int]]], padding: int) -> float:
    """Count what training costs per token of a batch, padding included: matrix products, forward and backward.

    Counted on the CPU and without fused attention, where also recurrent layers and attention are seen as the products
    that they are; without dropout, so that no random number is drawn.
    """
    counted = deepcopy(model).eval()
    draw = Buckets(sides, COUNTED_TOKENS, padding, seed=0)
    flops = tokens = 0
    for step in range(COUNTED_BATCHES):
        batch = draw(step)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            translation_loss(counted, batch, padding=padding, smoothing=0.1).total.backward()
        flops += counter.get_total_flops()
        tokens += sum(side.numel() for side in batch)
    return flops / tokens


def hits(model: Model, batch: tuple[Tensor, ...], *, padding: int) -> Loss:
    """Count the target tokens that are the likeliest ones, as if they were a loss."""
    source, target = batch
    following = target[:, 1:]
    counted = following != padding
    hidden = model.hidden(source, target[:, :-1], present=source != padding)[counted]
    right = (hidden @ model.output_weight.T).argmax(-1) == following[counted]
    return Loss(right.sum().float(), counted.sum())


def trial(config: TranslationConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Train one arm with the compute that it may use, then measure its averaged weights on held-out verses."""
    words = tokenizer(config.vocabulary, config.words, config.training_pairs)
    padding = words.special_tokens[PADDING]
    sides = encoded_pairs(words, pairs("train", config.words, config.training_pairs))
    model = build(config)
    per_token = flops_per_token(model, sides, padding)
    batches = Buckets(sides, config.step_tokens, padding, context.seed)
    tokens = [sum(side.numel() for side in batches(step)) for step in range(batches.batches_per_epoch)]
    step_flops = per_token * sum(tokens) / len(tokens)
    steps = max(AVERAGED, round(config.teraflops * 1e12 / step_flops))
    averaged = {
        point: [round(point * steps * (1 - AVERAGED_PART * part / AVERAGED)) for part in range(AVERAGED)]
        for point in config.points
    }
    snapshots = Snapshots(context.folder / "snapshots", {step for some in averaged.values() for step in some})

    def log(step: int, steps: int, **values: float) -> None:
        context.log(step, steps, **values)
        snapshots.take(model, step)

    training = TrainingConfig(
        steps,
        config.learning_rate,
        schedule=InverseSquareRoot(max(1, round(config.warmup * steps))),
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    loss = partial(translation_loss, padding=padding, smoothing=config.smoothing)
    result = train(model, batches, loss, training, fabric=context.fabric, checkpoint=context.checkpoint, log=log)
    metrics = {"teraflops": steps * step_flops / 1e12, "steps": float(steps)}
    metrics["parameters"] = float(sum(weight.numel() for weight in model.parameters()))
    held_out = pairs(split, config.words, config.evaluated)
    measured = partial(measure, config=config, words=words, held_out=held_out, context=context)
    for number, (point, some) in enumerate(averaged.items(), start=1):
        model.load_state_dict(snapshots.load(*some))
        found = measured(model)
        metrics |= {f"{name}_{number}": value for name, value in found.items()} if point < 1 else found
        metrics[f"teraflops_{number}"] = some[0] * step_flops / 1e12
        context.costs[f"seconds_{number}"] = float(result.step_seconds[: some[0]].sum())
    context.costs["train_seconds"] = result.seconds
    if len(config.points) > 1:
        leave_exhibits(model, words, held_out, context)
    snapshots.remove()
    return metrics


def measure(
    model: Model,
    *,
    config: TranslationConfig,
    words: BytePairTokenizer,
    held_out: Sequence[tuple[str, str]],
    context: Context,
) -> dict[str, float]:
    """Measure loss and accuracy by the token, and BLEU of translations, as sacrebleu computes it from plain text."""
    padding = words.special_tokens[PADDING]
    batches = in_order_of_length(encoded_pairs(words, held_out), 4096, padding)
    loss = evaluate(model, batches, partial(translation_loss, padding=padding), fabric=context.fabric)
    accuracy = evaluate(model, batches, partial(hits, padding=padding), fabric=context.fabric)
    began = time.perf_counter()
    translations = translate(model, words, [source for source, _ in held_out], beam=config.beam)
    context.costs["translation_seconds"] = time.perf_counter() - began
    bleu = corpus_bleu(translations, [[target for _, target in held_out]]).score
    return {"loss": loss, "perplexity": math.exp(loss), "accuracy": accuracy, "bleu": bleu}
