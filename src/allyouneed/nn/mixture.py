"""Tokens to experts and back: routes sorted by expert, products over segments of rows, and the weighted sum of answers.

A mixture of experts computes another function for each token without a loop over tokens. Routes, one for each token
and expert that it is sent to, are sorted by expert, so that what an expert receives is a segment of consecutive rows.
Each segment is multiplied by its expert's matrices, and the answers are added up at the tokens where they came from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Routes:
    """Which token goes to which expert, sorted by expert.

    Attributes:
        tokens: of each route, the token that takes it; routes to one expert stand together, experts in order.
        weights: what the expert's answer is multiplied by.
        counts: how many routes lead to each expert.
        places: of each route, its place among the choices that it was sorted out of, counted row by row.
    """

    tokens: Int[Tensor, " routes"]
    weights: Float[Tensor, " routes"]
    counts: tuple[int, ...]
    places: Int[Tensor, " routes"]


def sort_routes(
    chosen: Int[Tensor, "tokens choices"],
    weights: Float[Tensor, "tokens choices"],
    experts: int,
    kept: Bool[Tensor, "tokens choices"] | None = None,
) -> Routes:
    """Sort the choices of all tokens by expert; tokens of one expert stay in their order.

    Args:
        chosen: the experts that each token goes to.
        weights: of each choice.
        experts: number of experts.
        kept: False where a choice is dropped; all are kept where None.

    Raises:
        ValueError: an expert out of range.
    """
    flat = chosen.flatten()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < experts:
        raise ValueError(
            f"tokens were sent to experts {int(flat.min())} to {int(flat.max())}; there are {experts}, counted from 0"
        )
    if kept is not None:
        # Beyond the last expert, and so behind all segments.
        flat = flat.where(kept.flatten(), experts)
    counts = torch.bincount(flat, minlength=experts + 1)[:experts].tolist()
    places = flat.argsort(stable=True)[: sum(counts)]
    return Routes(places // chosen.shape[1], weights.flatten()[places], tuple(counts), places)


def mix(
    tokens: Float[Tensor, "tokens width"],
    routes: Routes,
    compute: Callable[[Tensor, Sequence[int]], Tensor],
) -> Float[Tensor, "tokens outputs"]:
    """Send tokens to their experts and add up the weighted answers; a token without a route is given zeros.

    Args:
        tokens: their vectors.
        routes: where they go.
        compute: gives the experts' answers to rows sorted by expert, and the rows' number for each expert.
    """
    answers = compute(tokens[routes.tokens], routes.counts)
    answers = answers * routes.weights[:, None].to(answers.dtype)
    return answers.new_zeros(len(tokens), answers.shape[1]).index_add(0, routes.tokens, answers)


class _SegmentLinear(torch.autograd.Function):
    """Multiplies in place of one output and one gradient, so that no segment is copied."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], biased: bool, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(rows, *parameters)
        ctx.counts, ctx.biased = counts, biased
        weights, biases = _halves(parameters, biased)
        outputs = rows.new_empty(len(rows), weights[0].shape[0])
        for index, (output, part) in enumerate(zip(outputs.split(counts), rows.split(counts), strict=True)):
            if biased:
                torch.addmm(biases[index], part, weights[index].t(), out=output)
            else:
                torch.mm(part, weights[index].t(), out=output)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, *parameters = ctx.saved_tensors
        weights, _ = _halves(parameters, ctx.biased)
        whole = gradients[0].contiguous()
        row_gradient = torch.empty_like(rows)
        weight_gradients, bias_gradients = [], []
        segments = (tensor.split(ctx.counts) for tensor in (whole, rows, row_gradient))
        for gradient, part, target, weight in zip(*segments, weights, strict=True):
            torch.mm(gradient, weight, out=target)
            weight_gradients.append(torch.mm(gradient.t(), part))
            if ctx.biased:
                bias_gradients.append(gradient.sum(0))
        return row_gradient, None, None, *weight_gradients, *bias_gradients


def _halves(parameters: Sequence[Tensor], biased: bool) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    experts = len(parameters) // 2 if biased else len(parameters)
    return parameters[:experts], parameters[experts:]


def segment_linear(
    rows: Float[Tensor, "rows inputs"],
    counts: Sequence[int],
    weights: Sequence[Float[Tensor, "outputs inputs"]],
    biases: Sequence[Float[Tensor, " outputs"]] | None = None,
) -> Float[Tensor, "rows outputs"]:
    """Multiply each segment of rows by a matrix of its own.

    Equal to `torch.cat([linear(part, weight) for part, weight in zip(rows.split(counts), weights)])`, with fewer copies
    and calls. An expert without rows is given a gradient too, of zeros.

    Args:
        rows: segments one after the other.
        counts: rows of each segment.
        weights: a matrix for each segment, all of one shape.
        biases: a vector for each segment, or none for all.

    Raises:
        ValueError: counts that do not add up to the rows, or are not as many as the matrices.
    """
    if len(counts) != len(weights) or sum(counts) != len(rows) or (biases is not None and len(biases) != len(weights)):
        raise ValueError(
            f"{len(rows)} rows in {len(counts)} segments of {sum(counts)} together cannot be multiplied by "
            f"{len(weights)} matrices" + ("" if biases is None else f" with {len(biases)} biases")
        )
    parameters = [*weights, *(biases or ())]
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, parameters = rows.to(dtype), [parameter.to(dtype) for parameter in parameters]
    with torch.autocast(device, enabled=False):
        mapped = _SegmentLinear.apply(rows, list(counts), biases is not None, *parameters)
    assert isinstance(mapped, Tensor)
    return mapped


class Mixture(nn.Module):
    """A position-wise layer of many experts, in which tokens are counted and may compete for room.

    Padding takes no part: it is not routed, and neither capacity nor losses nor statistics know of it. So rows with
    padding are routed as their tokens alone would be.
    """

    def forward(
        self, hidden: Float[Tensor, "*axes width"], present: Bool[Tensor, "*axes"] | None = None
    ) -> Float[Tensor, "*axes width"]:
        """Send each token through its experts.

        Args:
            hidden: the tokens' vectors.
            present: False where a token is padding, which is given zeros; all are present where None.
        """
        tokens = hidden.reshape(-1, hidden.shape[-1])
        if present is None:
            return self.mixed(tokens).reshape(hidden.shape)
        places = present.flatten().nonzero().squeeze(1)
        mixed = self.mixed(tokens[places])
        return mixed.new_zeros(tokens.shape).index_copy(0, places, mixed).reshape(hidden.shape)

    def mixed(self, tokens: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Send tokens, none of which is padding, through their experts."""
        raise NotImplementedError


def is_mixture(layer: nn.Module) -> bool:
    """Tell whether a layer takes `present` as a `Mixture` does, compiled or not."""
    return isinstance(getattr(layer, "_orig_mod", layer), Mixture)


class Experts(nn.Module):
    """Feed-forward layers side by side, each applied to its own segment of rows: FFN, the one of `FeedForward`.

    Args:
        experts: how many.
        width: width of the residual stream.
        hidden: inner width of each.
        activation: applied between the layers.
        bias: whether the linear layers have biases.

    Attributes:
        number: of experts.

    Raises:
        ValueError: no experts, or a width below 1.
    """

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
        bias: bool = False,
    ):
        super().__init__()
        if min(experts, width, hidden) < 1:
            raise ValueError(f"{experts} experts of width {width} and inner width {hidden}: each must be at least 1")
        self.number = experts
        self.activation = activation
        self.inner = nn.ModuleList(nn.Linear(width, hidden, bias=bias) for _ in range(experts))
        self.output = nn.ModuleList(nn.Linear(hidden, width, bias=bias) for _ in range(experts))

    def forward(self, rows: Float[Tensor, "rows width"], counts: Sequence[int]) -> Float[Tensor, "rows width"]:
        """Compute each expert on its rows.

        Args:
            rows: sorted by expert.
            counts: rows of each expert.
        """
        return each(self.output, self.activation(each(self.inner, rows, counts)), counts)


class GatedExperts(Experts):
    """Gated feed-forward layers side by side, as `GatedFeedForward` is; arguments as of `Experts`."""

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
    ):
        super().__init__(experts, width, hidden, activation, bias)
        self.gate = nn.ModuleList(nn.Linear(width, hidden, bias=bias) for _ in range(experts))

    def forward(self, rows: Float[Tensor, "rows width"], counts: Sequence[int]) -> Float[Tensor, "rows width"]:
        """Compute each expert on its rows; arguments as of `Experts`."""
        gate = self.activation(each(self.gate, rows, counts))
        return each(self.output, gate * each(self.inner, rows, counts), counts)


def each(layers: Any, rows: Float[Tensor, "rows inputs"], counts: Sequence[int]) -> Float[Tensor, "rows outputs"]:
    """Apply linear layers, one to each segment of rows: in training by their weights at once, else one by one.

    Layers that are no `torch.nn.Linear`, such as quantised ones, are applied one by one too, and those without rows not
    at all.

    Args:
        layers: a linear layer for each segment, as an `nn.ModuleList`.
        rows: sorted by layer.
        counts: rows of each layer.
    """
    if torch.is_grad_enabled() and all(isinstance(linear, nn.Linear) for linear in layers):
        biases = None if layers[0].bias is None else [linear.bias for linear in layers]
        return segment_linear(rows, counts, [linear.weight for linear in layers], biases)
    parts = [linear(part) for linear, part in zip(layers, rows.split(list(counts)), strict=True) if len(part)]
    return torch.cat(parts) if parts else rows.new_zeros(0, layers[0].out_features)
