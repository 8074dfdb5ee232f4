"""The trials: a dense decoder, sparse ones of equal operations a token, and what begins with the trained dense one."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allyouneed.data import Split
from allyouneed.evidence import Context
from allyouneed.evidence.watching import train_watched
from allyouneed.nn import Decoder, Experts
from allyouneed.training import Loss, evaluate, next_token_loss, peak_tensor_bytes

from .dense import DENSE, DenseConfig, load, training
from .expert_choice import ExpertChoice
from .routing import SparseFeedForward, TopKRouter, router_loss, router_statistics
from .upcycling import upcycle

STATISTICS_BATCHES = 64
"""Training batches over which the router is described after training."""


@dataclass(frozen=True, kw_only=True)
class MoeExplainedConfig(DenseConfig):
    """One arm.

    Attributes:
        kind: of the feed-forward layers: dense; Switch, with one expert a token; or mixtures of two experts a token,
            as upcycling makes them, begun anew (`scratch`) or from the trained dense model (`upcycled`). `continued`
            is that dense model, trained on as long as it.
        experts: in each sparse layer.
        capacity_factor: of Switch layers; the others have no limit.
        balance: weight of the balancing loss.
        z: weight of the router's z-loss.
        steps: optimiser steps; of what begins with the dense model, the further ones. The dense arm has `dense_steps`.
        learning_rate: at its peak; the best of a grid that all arms were given (see the readme).
        evaluated_tokens: held-out targets of the last score, half from novels, half from addresses.
    """

    kind: Literal["dense", "switch", "scratch", "upcycled", "continued"]
    experts: int = 8
    capacity_factor: float = 1.25
    balance: float = 0.01
    z: float = 0.0
    steps: int = 1500
    learning_rate: float = 1.6e-2
    evaluated_tokens: int = 131_072

    @property
    def operations(self) -> int:
        """Multiply-adds a token in a forward pass: of linear layers, and of attention over all pairs of a window."""
        sparse = {"switch": 1, "scratch": 2, "upcycled": 2}
        experts, router = sparse.get(self.kind, 1), self.experts * self.width if self.kind in sparse else 0
        attention = 4 * self.width**2 + 2 * self.length * self.width
        return (
            self.layers * (attention + experts * 2 * self.width * self.hidden + router) + self.width * self.vocabulary
        )


def build(config: MoeExplainedConfig) -> Decoder:
    """Compose the model that begins anew. An upcycled one is dense at first."""

    def sparse(k: int, capacity_factor: float | None) -> SparseFeedForward:
        experts = Experts(config.experts, config.width, config.hidden, nn.functional.gelu, bias=True)
        return SparseFeedForward(
            TopKRouter(config.width, config.experts, k, normalised=k > 1), experts, capacity_factor
        )

    if config.kind == "switch":
        return config.build(lambda: sparse(1, config.capacity_factor))
    if config.kind == "scratch":
        return config.build(lambda: sparse(2, None))
    return config.build()


def trial(config: MoeExplainedConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Train one arm, scoring it now and then, and describe its routers."""
    batches = config.batches(context.seed)
    before, earlier, model = 0, {}, build(config)
    if config.kind in ("dense", "continued", "upcycled"):
        # The text goes on where the dense model left it.
        before = config.dense_steps
        model, earlier = load(config.dense, context.stage(DENSE, config.dense))
    if config.kind == "upcycled":
        model = upcycle(model, config.experts, 2)

    def loss(model: Decoder, batch: Tensor) -> Loss:
        total, targets = next_token_loss(model, batch)
        return Loss(total + targets * router_loss(model, config.balance, config.z), targets)

    if config.kind == "dense":
        curve = earlier
        model.to(context.fabric.device)
    else:
        curve, result = train_watched(
            model,
            lambda step: batches(before + step),
            loss,
            training(config.steps, config.learning_rate),
            config.held_out("validation", config.watched_tokens),
            next_token_loss,
            config.evaluations,
            context,
        )
        context.costs["step_seconds"] = float(result.step_seconds.median())
    final = config.held_out(split, config.evaluated_tokens)
    metrics = {
        "loss": evaluate(model, final, next_token_loss, fabric=context.fabric),
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
    } | {f"loss_at_{step}": value for step, value in curve.items()}
    later = [batches(before + config.steps + index) for index in range(STATISTICS_BATCHES)]
    if config.kind not in ("dense", "continued"):
        metrics |= described(model, later, context)
    if config.kind == "switch":
        context.costs["step_megabytes"] = step_bytes(model, later[0], loss, context) / 1e6
    return metrics


@torch.no_grad()
def described(model: Decoder, batches: list[Tensor], context: Context) -> dict[str, float]:
    """Describe the routers over some training batches, with the capacity that they have in training."""
    model.train()
    rows = []
    for batch in batches:
        with context.fabric.autocast(), inputs_of(sparse_layers(model)) as inputs:
            model.hidden(context.fabric.to_device(batch)[:, :-1])
        rows.append(router_statistics(model) | chosen_by_experts(inputs))
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def sparse_layers(model: nn.Module) -> list[SparseFeedForward]:
    """List a model's sparse layers."""
    return [module for module in model.modules() if isinstance(module, SparseFeedForward)]


@contextmanager
def inputs_of(layers: list[SparseFeedForward]) -> Iterator[dict[SparseFeedForward, Tensor]]:
    """Give what each layer is called with, once it is."""
    inputs: dict[SparseFeedForward, Tensor] = {}

    def keep(layer: Any, given: tuple[Tensor, ...]) -> None:
        inputs[layer] = given[0].flatten(0, -2)

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def chosen_by_experts(inputs: Mapping[SparseFeedForward, Tensor]) -> dict[str, float]:
    """Let the experts of each layer choose among the same tokens, one expert a token on average.

    Returns:
        `expert_choice_largest_load`: the busiest expert's tokens over the mean; `expert_choice_unserved`: the share of
        tokens that no expert takes. Both are means over layers.
    """
    rows = []
    for layer, tokens in inputs.items():
        routes = ExpertChoice(layer.router, layer.experts, capacity_factor=1.0).routes(tokens)
        rows.append(
            (
                max(routes.counts) * len(routes.counts) / sum(routes.counts),
                1.0 - len(routes.tokens.unique()) / len(tokens),
            )
        )
    loads, unserved = zip(*rows, strict=True)
    return {
        "expert_choice_largest_load": sum(loads) / len(loads),
        "expert_choice_unserved": sum(unserved) / len(unserved),
    }


def step_bytes(model: Decoder, batch: Tensor, loss: Any, context: Context) -> int:
    """Measure the memory of a step's forward and backward pass where experts compute all slots of their capacity."""
    sparse = sparse_layers(model)
    for module in sparse:
        module.slots = True
    model.train().zero_grad()

    def step() -> None:
        with context.fabric.autocast():
            loss(model, context.fabric.to_device(batch)).total.backward()

    peak = peak_tensor_bytes(step, context.fabric.device)
    model.zero_grad()
    for module in sparse:
        module.slots = False
    return peak
