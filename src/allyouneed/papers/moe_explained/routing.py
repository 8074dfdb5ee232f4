"""Sparse feed-forward layers of transformers: top-k routing with expert capacity, and the losses on the router."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.nn import Mixture, Routes, mix, sort_routes
from allyouneed.papers.moe import check_choices


class Choice(NamedTuple):
    """What a router chooses for a batch of tokens.

    Attributes:
        logits: x · W, before the softmax.
        chosen: the experts of each token, the most probable first.
        weights: what their answers are multiplied by.
    """

    logits: Float[Tensor, "tokens experts"]
    chosen: Int[Tensor, "tokens choices"]
    weights: Float[Tensor, "tokens choices"]


@dataclass(frozen=True)
class Routing:
    """How the tokens of a call were routed, for losses and statistics.

    Attributes:
        choice: what the router chose.
        kept: False where an expert had no room left, so that the token's choice was dropped.
        capacity: the most tokens that an expert took; None without a limit.
    """

    choice: Choice
    kept: Bool[Tensor, "tokens choices"]
    capacity: int | None


class TopKRouter(nn.Module):
    """Softmax over all experts, then the k most probable; Switch has k = 1, Mixtral k = 2 and weights that add up to 1.

    With k = 1 the weight is the probability itself, through which the router gets its gradient (Fedus et al. 2021,
    section 2.1). Computed in 32 bits or more whatever the precision around it (selective precision, section 2.4).

    Args:
        width: of a token's vector.
        experts: to choose from.
        k: chosen for each token.
        normalised: whether the weights of those chosen are divided by their sum.

    Raises:
        ValueError: k below 1 or beyond the number of experts; normalised weights with k = 1, which would all be 1 and
            leave the router without a gradient.
    """

    def __init__(self, width: int, experts: int, k: int, *, normalised: bool = False):
        super().__init__()
        check_choices(k, experts)
        if normalised and k == 1 and experts > 1:
            raise ValueError(
                "a single weight that is normalised is 1, and the router would never learn: take k above 1"
            )
        self.experts = experts
        self.k = k
        self.normalised = normalised
        # A tenth of the usual variance (Fedus et al. 2021, section 2.4).
        self.weight = nn.Parameter(torch.randn(experts, width) * math.sqrt(0.1 / width))

    def forward(self, tokens: Float[Tensor, "tokens width"]) -> Choice:
        """Choose each token's experts."""
        with torch.autocast(tokens.device.type, enabled=False):
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            logits = F.linear(tokens.to(dtype), self.weight.to(dtype))
            weights, chosen = logits.softmax(1).topk(self.k, dim=1)
            if self.normalised:
                weights = weights / weights.sum(1, keepdim=True)
        return Choice(logits, chosen, weights)


def expert_capacity(tokens: int, experts: int, factor: float) -> int:
    """Give the most tokens that an expert takes: tokens / experts · capacity factor, rounded up.

    Source: the post, section "Switch Transformers". A token is counted once, however many experts it goes to.

    Raises:
        ValueError: a factor that is not above 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"the capacity factor is {factor}: it must be a finite number above 0")
    return math.ceil(tokens / experts * factor)


def within_capacity(
    chosen: Int[Tensor, "tokens choices"], experts: int, capacity: int
) -> Bool[Tensor, "tokens choices"]:
    """Tell which choices find room; first choices come before second ones, and earlier tokens before later ones.

    Raises:
        ValueError: a capacity below 0.
    """
    if capacity < 0:
        raise ValueError(f"the capacity is {capacity}: an expert cannot take fewer than 0 tokens")
    flat = chosen.t().flatten()
    counts = torch.bincount(flat, minlength=experts)
    order = flat.argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[flat[order]]
    return (ranks < capacity).reshape(chosen.shape[1], chosen.shape[0]).t()


class SparseFeedForward(Mixture):
    """A feed-forward layer of many experts; takes the place of `FeedForward` in a block.

    A token whose experts are full is given zeros, so that the residual connection alone carries it on.

    Args:
        router: chooses each token's experts.
        experts: `Experts`, `GatedExperts`, or those of an `ExpertParallel`.
        capacity_factor: limits in training what an expert takes of a batch; None does not. In evaluation there is no
            limit: what a token is given must not depend on the others of its batch.
        slots: whether each expert computes all that its capacity has room for, empty slots too, as compiled programs
            of fixed shapes do. The result is the same.

    Attributes:
        routing: of the last call, padding left out.

    Raises:
        ValueError: a router for another number of experts, a factor that is not above 0, or slots without a capacity.
    """

    def __init__(self, router: TopKRouter, experts: Any, capacity_factor: float | None = None, *, slots: bool = False):
        super().__init__()
        if router.experts != experts.number:
            raise ValueError(f"the router chooses from {router.experts} experts, and there are {experts.number}")
        if capacity_factor is not None:
            expert_capacity(1, 1, capacity_factor)
        elif slots:
            raise ValueError("slots need a capacity_factor: without one there is no number of them")
        self.router = router
        self.experts = experts
        self.capacity_factor = capacity_factor
        self.slots = slots
        self.routing: Routing | None = None

    def mixed(self, tokens: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Send each token through its experts."""
        choice = self.router(tokens)
        capacity, kept = None, torch.ones_like(choice.chosen, dtype=torch.bool)
        if self.training and self.capacity_factor is not None:
            capacity = expert_capacity(len(tokens), self.experts.number, self.capacity_factor)
            kept = within_capacity(choice.chosen, self.experts.number, capacity)
        self.routing = Routing(choice, kept, capacity)
        routes = sort_routes(choice.chosen, choice.weights, self.experts.number, kept)
        if self.slots and capacity is not None:
            return self._in_slots(tokens, routes, capacity)
        return mix(tokens, routes, self.experts)

    def _in_slots(self, tokens: Tensor, routes: Routes, capacity: int) -> Tensor:
        counts = torch.tensor(routes.counts, device=tokens.device)
        starts = torch.arange(len(counts), device=tokens.device) * capacity - (counts.cumsum(0) - counts)
        places = torch.arange(len(routes.tokens), device=tokens.device) + starts.repeat_interleave(counts)

        def compute(rows: Tensor, counts: Sequence[int]) -> Tensor:
            buffer = rows.new_zeros(len(counts) * capacity, rows.shape[1]).index_copy(0, places, rows)
            return self.experts(buffer, [capacity] * len(counts))[places]

        return mix(tokens, routes, compute)


def balancing_loss(choice: Choice) -> Float[Tensor, ""]:
    """N · Σ f_i P_i: the share of choices that went to each expert times its mean probability; 1 where both are even.

    Source: Fedus et al. 2021, equations 4 to 6. f counts what was chosen before any was dropped, and has no gradient.
    Of no tokens it is 0.
    """
    if len(choice.logits) == 0:
        return choice.logits.sum()
    experts = choice.logits.shape[1]
    shares = torch.bincount(choice.chosen.flatten(), minlength=experts) / choice.chosen.numel()
    return experts * (shares * choice.logits.softmax(1).mean(0)).sum()


def z_loss(choice: Choice) -> Float[Tensor, ""]:
    """Mean of the squared log-sum-exp of a token's logits (Zoph et al. 2022, equation 5); 0 of no tokens."""
    if len(choice.logits) == 0:
        return choice.logits.sum()
    return choice.logits.logsumexp(1).square().mean()


def ties(choice: Choice, dtype: torch.dtype) -> Bool[Tensor, " tokens"]:
    """Tell for which tokens a lower precision could not make the router's choice.

    Rounding keeps the order of logits and can only make them equal: where one that was not chosen equals one that was,
    the choice is left to chance.
    """
    rounded = choice.logits.to(dtype).float()
    chosen = rounded.gather(1, choice.chosen).amin(1)
    others = rounded.scatter(1, choice.chosen, -math.inf).amax(1)
    return others >= chosen


def rounding_error(choice: Choice, dtype: torch.dtype) -> Float[Tensor, " tokens"]:
    """Give how far the probabilities of a token move when its logits are rounded: their total variation, 0 to 1.

    Floats are coarser the larger they are, and an exponential makes a relative error of its argument's error: what
    the z-loss is for (Zoph et al. 2022, section 3.4).
    """
    rounded = choice.logits.to(dtype).to(choice.logits.dtype)
    return 0.5 * (rounded.softmax(1) - choice.logits.softmax(1)).abs().sum(1)


def routings(model: nn.Module) -> list[Routing]:
    """Give how each sparse layer of a model routed in its last call.

    Raises:
        ValueError: a layer was not called yet.
    """
    layers = [module for module in model.modules() if isinstance(module, SparseFeedForward)]
    found = [layer.routing for layer in layers if layer.routing is not None]
    if len(found) < len(layers):
        raise ValueError(f"{len(layers) - len(found)} of {len(layers)} sparse layers were not called yet")
    return found


def router_loss(model: nn.Module, balance: float = 0.01, z: float = 0.001) -> Float[Tensor, ""] | float:
    """Sum over a model's sparse layers the balancing loss and the z-loss of their last call, each with its weight.

    The weights are those of Fedus et al. 2021 (section 2.2) and Zoph et al. 2022 (section 3.3).

    Raises:
        ValueError: a negative weight, or a layer that was not called yet.
    """
    if min(balance, z) < 0:
        raise ValueError(f"the weights of the losses are {balance} and {z}: they must not be negative")
    total: Any = 0.0
    for routing in routings(model):
        if balance:
            total = total + balance * balancing_loss(routing.choice)
        if z:
            total = total + z * z_loss(routing.choice)
    return total


@torch.no_grad()
def router_statistics(model: nn.Module) -> dict[str, float]:
    """Describe how the tokens of the last call were routed, as means over a model's sparse layers.

    Returns:
        `dropped`: share of choices that found no room; `largest_load`: the busiest expert's choices over the mean;
        `unused`: share of experts that nothing chose; `entropy`: of the probabilities of a token, over that of even
        ones; `largest_logit`: the mean over tokens of the largest logit, with its sign; `z_loss`: the mean squared
        log-sum-exp; `bf16_ties`: share of tokens whose choice bfloat16 could not make, since in it a logit not chosen
        equals one that was; `bf16_error`: how far rounding logits to bfloat16 moves a token's probabilities, as their
        total variation; `slots`: what the experts have room for over the tokens, 0 without a limit.

    Raises:
        ValueError: no sparse layers, or one that was not called yet or was given padding alone.
    """
    found = routings(model)
    if not found:
        raise ValueError("there are no sparse layers in this model")
    rows = []
    for routing in found:
        logits, chosen, _ = routing.choice
        tokens, experts = logits.shape
        if tokens == 0:
            raise ValueError("a sparse layer was given padding alone, of which there is nothing to describe")
        counts = torch.bincount(chosen.flatten(), minlength=experts).double()
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        rows.append(
            {
                "dropped": 1.0 - float(routing.kept.double().mean()),
                "largest_load": float(counts.max() / counts.mean()),
                "unused": float((counts == 0).double().mean()),
                "entropy": float(entropy) / math.log(experts) if experts > 1 else 1.0,
                "largest_logit": float(logits.amax(1).mean()),
                "z_loss": float(z_loss(routing.choice)),
                "bf16_ties": float(ties(routing.choice, torch.bfloat16).double().mean()),
                "bf16_error": float(rounding_error(routing.choice, torch.bfloat16).mean()),
                "slots": 0.0 if routing.capacity is None else routing.capacity * experts / tokens,
            }
        )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
