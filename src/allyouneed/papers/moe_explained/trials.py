"""The trials: a dense decoder, sparse ones of equal operations a token, and mixtures that begin as a dense one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allyouneed.data import Split
from allyouneed.data.batches import RandomWindows
from allyouneed.data.tokens import corpus_tokens, corpus_windows
from allyouneed.evidence import Context
from allyouneed.evidence.watching import steps_to, train_watched
from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    Experts,
    FeedForward,
    PreNorm,
    RotaryPositions,
    initialise_xavier,
)
from allyouneed.training import (
    Cosine,
    Loss,
    TrainingConfig,
    evaluate,
    next_token_loss,
    peak_tensor_bytes,
    train,
)

from .routing import SparseFeedForward, TopKRouter, router_loss, router_statistics
from .upcycling import upcycle

STATISTICS_BATCHES = 8
"""Training batches over which the router is described after training."""


@dataclass(frozen=True)
class MoeExplainedConfig:
    """One arm.

    Attributes:
        kind: of the feed-forward layers: dense; Switch, with one expert a token; or mixtures of two experts a token,
            as upcycling makes them, begun anew (`scratch`) or from a dense model that was trained first (`upcycled`).
        experts: in each sparse layer.
        capacity_factor: of Switch layers; the others have no limit.
        balance: weight of the balancing loss.
        z: weight of the router's z-loss.
        dense_steps: steps of the dense model that is upcycled.
        dense_rate: its learning rate at the peak, the best of the dense arm.
        target: loss on the validation split, in nats a token, that is to be reached.
        width: of the residual stream.
        hidden: inner width of the dense layer and of each expert.
        layers: number of blocks.
        heads: number of attention heads.
        length: tokens that a model is given.
        vocabulary: 256 reads bytes; more is a byte-pair vocabulary learned from the training text.
        step_tokens: tokens in a batch.
        steps: optimiser steps; of an upcycled model, those after it was made sparse.
        learning_rate: at its peak; the best of a grid that all arms were given (see the readme).
        evaluations: how often the model is scored while it trains.
        watched_tokens: targets of these scores, from the validation split, half from a novel, half from addresses.
        evaluated_tokens: held-out targets of the last score, likewise.
    """

    kind: Literal["dense", "switch", "scratch", "upcycled"]
    experts: int = 8
    capacity_factor: float = 1.25
    balance: float = 0.01
    z: float = 0.0
    dense_steps: int = 500
    dense_rate: float = 2.4e-2
    target: float = 1.95
    width: int = 32
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 64
    vocabulary: int = 256
    step_tokens: int = 2048
    steps: int = 500
    learning_rate: float = 2.4e-2
    evaluations: int = 20
    watched_tokens: int = 16_384
    evaluated_tokens: int = 65_536


def feed_forward(config: MoeExplainedConfig) -> nn.Module:
    """Make a feed-forward layer: the arms differ here."""
    width, hidden = config.width, config.hidden
    if config.kind == "switch":
        experts = Experts(config.experts, width, hidden, nn.functional.gelu, bias=True)
        return SparseFeedForward(TopKRouter(width, config.experts, 1), experts, config.capacity_factor)
    if config.kind == "scratch":
        experts = Experts(config.experts, width, hidden, nn.functional.gelu, bias=True)
        return SparseFeedForward(TopKRouter(width, config.experts, 2, normalised=True), experts)
    return FeedForward(width, hidden)


def build(config: MoeExplainedConfig) -> Decoder:
    """Compose the model. An upcycled one is dense at first."""
    blocks = [
        Block(
            PreNorm(Attention(config.width, config.heads), nn.LayerNorm(config.width)),
            PreNorm(nn.Identity(), nn.LayerNorm(config.width)),
        )
        for _ in range(config.layers)
    ]
    positions = RotaryPositions(config.width // config.heads)
    model = Decoder(config.vocabulary, config.width, blocks, positions=positions, norm=nn.LayerNorm(config.width))
    # Drawn after what all arms share, so that a seed gives that the same initial weights in every arm.
    for block in blocks:
        residual: Any = block.feed_forward
        residual.sublayer = feed_forward(config)
        initialise_xavier(residual.sublayer)
    return model


def held_out(config: MoeExplainedConfig, split: Split, targets: int) -> list[Tensor]:
    """Give the windows that every arm is scored on, in batches."""
    rows = config.step_tokens // config.length
    return corpus_windows(config.vocabulary, split, config.length, rows, targets)


def training(config: MoeExplainedConfig, steps: int, learning_rate: float) -> TrainingConfig:
    """Say how to train: all arms alike but for steps and rate."""
    return TrainingConfig(steps, learning_rate, schedule=Cosine(warmup=steps // 10))


def trial(config: MoeExplainedConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Train one arm, scoring it now and then, and describe its routers."""
    model = build(config)
    rows = config.step_tokens // config.length
    batches = RandomWindows(torch.cat(corpus_tokens(config.vocabulary, "train")), config.length, rows, context.seed)
    before = 0
    if config.kind == "upcycled":
        # The text goes on where the dense model left it.
        before = config.dense_steps
        model = upcycle(trained_dense(model, batches, config, context), config.experts, 2)

    def loss(model: Decoder, batch: Tensor) -> Loss:
        total, targets = next_token_loss(model, batch)
        return Loss(total + targets * router_loss(model, config.balance, config.z), targets)

    # Whatever the last score is of, these are of the validation split: the target was set by it.
    curve, result = train_watched(
        model,
        lambda step: batches(before + step),
        loss,
        training(config, config.steps, config.learning_rate),
        held_out(config, "validation", config.watched_tokens),
        next_token_loss,
        config.evaluations,
        context,
    )
    context.costs["step_seconds"] = float(result.step_seconds.median())
    final = held_out(config, split, config.evaluated_tokens)
    metrics = {
        "loss": evaluate(model, final, next_token_loss, fabric=context.fabric),
        "steps_to_target": steps_to(config.target, curve),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    } | {f"loss_at_{step}": value for step, value in curve.items()}
    later = [batches(before + config.steps + index) for index in range(STATISTICS_BATCHES)]
    if config.kind != "dense":
        metrics |= described(model, later, context)
    if config.kind == "switch":
        context.costs["step_megabytes"] = step_bytes(model, later[0], loss, context) / 1e6
    return metrics


def trained_dense(model: Decoder, batches: RandomWindows, config: MoeExplainedConfig, context: Context) -> Decoder:
    """Train the dense model that is to be upcycled, as the dense arm trains."""
    # A file of its own: an interrupted trial continues either training where it was.
    checkpoint = context.further_checkpoint("dense")
    how = training(config, config.dense_steps, config.dense_rate)
    train(model, batches, next_token_loss, how, fabric=context.fabric, checkpoint=checkpoint)
    return model


@torch.no_grad()
def described(model: Decoder, batches: list[Tensor], context: Context) -> dict[str, float]:
    """Describe the routers over some training batches, with the capacity that they have in training."""
    model.train()
    rows = []
    for batch in batches:
        with context.fabric.autocast():
            model.hidden(context.fabric.to_device(batch)[:, :-1])
        rows.append(router_statistics(model))
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def step_bytes(model: Decoder, batch: Tensor, loss: Any, context: Context) -> int:
    """Measure the memory of a step's forward and backward pass where experts compute all slots of their capacity."""
    sparse = [module for module in model.modules() if isinstance(module, SparseFeedForward)]
    for module in sparse:
        module.slots = True
    model.train().zero_grad()

    def passes() -> None:
        with context.fabric.autocast():
            loss(model, context.fabric.to_device(batch)).total.backward()

    peak = peak_tensor_bytes(passes, context.fabric.device)
    model.zero_grad()
    for module in sparse:
        module.slots = False
    return peak
