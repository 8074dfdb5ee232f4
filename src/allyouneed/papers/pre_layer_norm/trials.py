"""The trials: gradients measured at initialisation, and a training at each of several learning rates."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.data import austen, verses
from allyouneed.data.batches import RandomWindows, consecutive_windows
from allyouneed.data.buckets import Buckets
from allyouneed.evidence import Context
from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    SinusoidalPositions,
    linear_cross_entropy,
)
from allyouneed.text import ByteTokenizer
from allyouneed.training import (
    Checkpoint,
    DivergedError,
    Linear,
    Loss,
    TrainingConfig,
    evaluate,
    next_token_loss,
    train,
)

from .pre_layer_norm import gradient_norms, initialise_gaussian, post_norm_block, pre_norm_block

PADDING, BEGIN = 0, 1
"""Bytes that stand in no verse."""
WORKS = 0.9
"""A learning rate works where the loss ends below this share of the loss of byte frequencies alone."""


@dataclass(frozen=True)
class PreLayerNormConfig:
    """One arm.

    Attributes:
        norm: where the norms stand.
        task: what is done: gradients at initialisation are measured in a translation model or in a language model, or
            a language model is trained.
        layers: blocks of a stack; a translation model has two stacks.
        warmup: share of the steps in which the learning rate rises; 0 starts at the peak.
        width: of the residual stream.
        hidden: inner width of the feed-forward layers; twice the width in the paper (appendix A.1).
        heads: number of attention heads; 4 in the paper.
        length: tokens that a language model is given.
        step_tokens: tokens in a batch; of each side in translation, padding included.
        models: initial weights that the measured gradients are averaged over.
        batches: that the expectation of a gradient is taken over.
        steps: optimiser steps of each training.
        learning_rates: the peaks that every arm is trained at, each from the same initial weights.
        evaluated_tokens: held-out targets that a trained model is scored on.
    """

    norm: Literal["pre", "post"]
    task: Literal["translation gradients", "language gradients", "training"] = "training"
    layers: int = 6
    warmup: float = 0.0
    width: int = 64
    hidden: int = 128
    heads: int = 4
    length: int = 64
    step_tokens: int = 512
    models: int = 8
    batches: int = 4
    steps: int = 450
    learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    evaluated_tokens: int = 16_384


def blocks(config: PreLayerNormConfig, attentions: int = 1) -> list[Block]:
    """Compose a stack: the arms differ in one word."""
    block = {"pre": pre_norm_block, "post": post_norm_block}[config.norm]
    return [
        block(
            *(Attention(config.width, config.heads) for _ in range(attentions)),
            FeedForward(config.width, config.hidden, F.relu),
            norm=lambda: nn.LayerNorm(config.width),
        )
        for _ in range(config.layers)
    ]


def stack(config: PreLayerNormConfig) -> dict[str, Any]:
    """Give what encoder and decoder have alike."""
    return {
        "vocabulary": 256,
        "width": config.width,
        "positions": SinusoidalPositions(config.width),
        "norm": nn.LayerNorm(config.width) if config.norm == "pre" else None,
        "embedding_scale": math.sqrt(config.width),
    }


def language_model(config: PreLayerNormConfig) -> Decoder:
    """Compose a model of text with new weights."""
    model = Decoder(blocks=blocks(config), **stack(config))
    initialise_gaussian(model)
    return model


def translation_model(config: PreLayerNormConfig) -> EncoderDecoder:
    """Compose a model of a text given another, with as many layers on each side and new weights."""
    encoder = Encoder(blocks=blocks(config), **stack(config))
    decoder = Decoder(blocks=blocks(config, attentions=2), **stack(config))
    model = EncoderDecoder(encoder, decoder, shared=True)
    initialise_gaussian(model)
    return model


def translation_loss(model: EncoderDecoder, batch: tuple[Tensor, Tensor]) -> Loss:
    """Sum the cross-entropies, in nats, of each byte of the targets."""
    source, target = batch
    present = source != PADDING
    hidden = model.hidden(source, target[:, :-1], present=None if bool(present.all()) else present)
    targets = target[:, 1:]
    return Loss(linear_cross_entropy(hidden, model.output_weight, targets, PADDING), (targets != PADDING).sum())


@cache
def text(split: Literal["train", "validation"]) -> Tensor:
    """Give the novels of a split, as bytes."""
    return ByteTokenizer().encode_to_tensor(austen(split))


@cache
def sentences() -> tuple[list[list[int]], list[list[int]]]:
    """Give English verses, and the same in Spanish, as bytes."""
    pairs = verses("train")
    return [list(english.encode()) for english, _ in pairs], [[BEGIN, *spanish.encode()] for _, spanish in pairs]


@cache
def sentence_batches(tokens: int, seed: int) -> Buckets:
    """Give the batches of a translation model; sorting all verses takes a while."""
    return Buckets(sentences(), tokens, PADDING, seed)


def windows(config: PreLayerNormConfig, seed: int) -> RandomWindows:
    """Give the batches of a language model."""
    return RandomWindows(text("train"), config.length, config.step_tokens // config.length, seed)


def gradients(config: PreLayerNormConfig, context: Context) -> dict[str, float]:
    """Measure the expected gradient of each layer's second feed-forward matrix, before any training.

    The mean over several initial weights. In a translation model the layers are the decoder's.
    """
    if config.task == "translation gradients":
        build, loss = translation_model, translation_loss
        batches: Callable[[int], Any] = sentence_batches(config.step_tokens, context.seed)
    else:
        build, loss = language_model, next_token_loss
        batches = windows(config, context.seed)
    norms = torch.zeros(config.layers)
    for index in range(config.models):
        model = context.fabric.to_device(build(config))
        decoder = model.decoder if isinstance(model, EncoderDecoder) else model
        matrices = [block.get_parameter("feed_forward.sublayer.output.weight") for block in decoder.blocks]
        chosen = (context.fabric.to_device(batches(index * config.batches + place)) for place in range(config.batches))
        norms += gradient_norms(model, matrices, chosen, loss).cpu() / config.models
        context.log(step=index + 1, steps=config.models)
    metrics = {f"layer_{place + 1}": float(norm) for place, norm in enumerate(norms)}
    rise = float(norms[-1] / norms[0])
    return metrics | {"last_layer": float(norms[-1]), "rise": rise, "octaves": math.log2(rise)}


@cache
def held_out(length: int, limit: int) -> list[Tensor]:
    """Give the windows that trained models are scored on, in batches."""
    return consecutive_windows(text("validation"), length, 64, limit=limit)


@cache
def frequency_loss(length: int, limit: int) -> float:
    """Give the loss of a model that knows how often each byte stands in the training text, and nothing else."""
    counts = torch.bincount(text("train").long(), minlength=256) + 1.0
    targets = torch.cat([batch[:, 1:].flatten() for batch in held_out(length, limit)])
    return float(-(counts / counts.sum()).log()[targets].mean())


def training(config: PreLayerNormConfig, context: Context) -> dict[str, float]:
    """Train from the same initial weights at every learning rate, and score each model on the same held-out text.

    A training that diverges counts as one that ends where a guess among 256 bytes would, and so does one that ends
    above it. Learning rates that are done are kept in a file, so that an interrupted trial goes on with the next one.
    """
    kept = context.folder / "losses.json"
    losses: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    for index, rate in enumerate(config.learning_rates):
        if f"{rate:g}" in losses:
            continue
        checkpoint = context.further_checkpoint(str(index))
        losses[f"{rate:g}"] = train_at(rate, index * config.steps, config, context, checkpoint)
        temporary = kept.with_suffix(".new")
        temporary.write_text(json.dumps(losses))
        temporary.replace(kept)
        checkpoint.path.unlink(missing_ok=True)
    reference = frequency_loss(config.length, config.evaluated_tokens)
    best = min(losses, key=losses.__getitem__)
    return {
        "best_loss": losses[best],
        "best_rate": float(best),
        "working_rates": sum(loss < WORKS * reference for loss in losses.values()),
        "frequency_loss": reference,
    } | {f"loss_at_{rate}": loss for rate, loss in losses.items()}


def train_at(rate: float, before: int, config: PreLayerNormConfig, context: Context, checkpoint: Checkpoint) -> float:
    """Train at one learning rate; return the held-out loss.

    Args:
        rate: at the peak.
        before: steps of the trainings that the trial has done before.
        config: of the arm.
        context: of the trial.
        checkpoint: where this training keeps its state.
    """
    torch.manual_seed(context.seed)
    model = language_model(config)
    # Adam as in the paper: β of 0.9 and 0.98, no weight decay, no clipping.
    settings = TrainingConfig(
        config.steps,
        rate,
        schedule=Linear(warmup=round(config.warmup * config.steps)),
        weight_decay=0.0,
        betas=(0.9, 0.98),
        clip=None,
    )

    def log(step: int, steps: int, **values: float) -> None:
        context.log(before + step, steps * len(config.learning_rates), **values)

    guess = math.log(256)
    try:
        train(
            model,
            windows(config, context.seed),
            next_token_loss,
            settings,
            fabric=context.fabric,
            checkpoint=checkpoint,
            log=log,
        )
    except DivergedError:
        return guess
    scored = held_out(config.length, config.evaluated_tokens)
    loss = evaluate(model, scored, next_token_loss, fabric=context.fabric)
    return loss if loss < guess else guess


def trial(config: PreLayerNormConfig, context: Context) -> Mapping[str, float]:
    """Do what the arm is for."""
    tasks = {"translation gradients": gradients, "language gradients": gradients, "training": training}
    return tasks[config.task](config, context)
