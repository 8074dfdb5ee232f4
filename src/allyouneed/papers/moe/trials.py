"""The trials: the paper's LSTM language model with more and more experts in its middle, at equal operations a token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allyouneed.data import Split
from allyouneed.data.batches import RandomWindows
from allyouneed.data.tokens import corpus_tokens, corpus_windows
from allyouneed.evidence import Context
from allyouneed.nn import Experts, FeedForward, initialise_xavier
from allyouneed.training import Cosine, Loss, TrainingConfig, evaluate, next_token_loss, train

from .moe import HierarchicalGate, MixtureOfExperts, NoisyTopKGate, RecurrentMixture, balancing_loss, squared_variation

BALANCE_BATCHES = 8
"""Batches over which importance and load are measured, as in Table 6: "several training batches"."""


@dataclass(frozen=True)
class MoeConfig:
    """One arm.

    Attributes:
        experts: in the middle layer; 0 puts one dense layer of as many operations there (MoE-1-Wide).
        k: experts that each token goes to.
        groups: of a hierarchical mixture, which goes to √k groups and √k experts of each; 1 is a flat one.
        importance: weight of the importance loss.
        load: weight of the load loss.
        expert_hidden: inner width of an expert; the dense layer's is k times that.
        width: of embeddings, LSTMs and the middle layer.
        dropout: on each layer's output.
        length: tokens that a model is given.
        vocabulary: 256 reads bytes; more is a byte-pair vocabulary learned from the training text.
        step_tokens: tokens in a batch.
        steps: optimiser steps.
        learning_rate: at its peak; the best of a grid that all arms were given (see the readme).
        evaluated_tokens: held-out targets, half from a novel, half from addresses.
    """

    experts: int
    k: int = 4
    groups: int = 1
    importance: float = 0.1
    load: float = 0.1
    expert_hidden: int = 64
    width: int = 32
    dropout: float = 0.0
    length: int = 32
    vocabulary: int = 256
    step_tokens: int = 2048
    steps: int = 800
    learning_rate: float = 3.2e-2
    evaluated_tokens: int = 65_536

    def __post_init__(self) -> None:
        if self.groups < 1 or self.experts % self.groups:
            raise ValueError(f"{self.experts} experts cannot be divided among {self.groups} groups")
        if self.groups > 1 and math.isqrt(self.k) ** 2 != self.k:
            raise ValueError(f"k is {self.k}: a hierarchy chooses as many groups as experts in each, so k is a square")

    @property
    def operations(self) -> int:
        """Multiply-adds a token in the forward pass, embeddings and softmax not counted, as in Table 7."""
        lstms = 2 * 8 * self.width**2
        # Scores and deviations of all that is chosen from, at both levels of a hierarchy.
        scored = self.experts
        if self.groups > 1:
            scored = self.groups + math.isqrt(self.k) * (self.experts // self.groups)
        return lstms + 2 * self.k * self.width * self.expert_hidden + 2 * self.width * scored


def build(config: MoeConfig) -> RecurrentMixture:
    """Compose the model: the arms differ in the layer between the LSTMs."""
    width = config.width
    # What all arms share is drawn first, so that a seed gives it the same initial weights in every arm.
    model = RecurrentMixture(config.vocabulary, width, nn.Identity(), config.dropout)
    if config.experts == 0:
        model.middle = FeedForward(width, config.k * config.expert_hidden, torch.relu, bias=False)
    else:
        gate = NoisyTopKGate(width, config.experts, config.k)
        if config.groups > 1:
            gate = HierarchicalGate(width, config.groups, config.experts // config.groups, math.isqrt(config.k))
        model.middle = MixtureOfExperts(gate, Experts(config.experts, width, config.expert_hidden))
    initialise_xavier(model.middle)
    return model


def trial(config: MoeConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Train one arm, score it on held-out text, and measure how its experts are used."""
    model = build(config)
    rows = config.step_tokens // config.length
    batches = RandomWindows(torch.cat(corpus_tokens(config.vocabulary, "train")), config.length, rows, context.seed)

    def balanced(model: RecurrentMixture, batch: Tensor) -> Loss:
        total, targets = next_token_loss(model, batch)
        return Loss(total + targets * balancing_loss(model, config.importance, config.load), targets)

    schedule = Cosine(warmup=config.steps // 10)
    result = train(
        model,
        batches,
        balanced,
        TrainingConfig(config.steps, config.learning_rate, schedule=schedule, weight_decay=0.0, betas=(0.9, 0.999)),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=context.log,
    )
    context.costs["step_seconds"] = float(result.step_seconds.median())
    windows = corpus_windows(config.vocabulary, split, config.length, rows, config.evaluated_tokens)
    loss = evaluate(model, windows, next_token_loss, fabric=context.fabric)
    metrics = {
        "perplexity": math.exp(loss),
        "operations": config.operations,
        "layer_parameters": sum(
            parameter.numel() for part in (model.first, model.middle, model.second) for parameter in part.parameters()
        ),
    }
    later = [batches(config.steps + index) for index in range(BALANCE_BATCHES)]
    return metrics | (balance(model, later, context) if config.experts else {})


@torch.no_grad()
def balance(model: RecurrentMixture, batches: list[Tensor], context: Context) -> dict[str, float]:
    """Measure what Table 6 has over some training batches, with the gate's noise."""
    assert isinstance(model.middle, MixtureOfExperts)
    model.train()
    sums = {"importance_variation": 0.0, "load_variation": 0.0, "largest_load": 0.0}
    for batch in batches:
        with context.fabric.autocast():
            model.hidden(context.fabric.to_device(batch)[:, :-1])
        gating = model.middle.gating
        assert gating is not None
        sums["importance_variation"] += float(squared_variation(gating.importance).sqrt())
        sums["load_variation"] += float(squared_variation(gating.load).sqrt())
        sums["largest_load"] += float(gating.load.max() / gating.load.mean())
    return {name: total / len(batches) for name, total in sums.items()}
