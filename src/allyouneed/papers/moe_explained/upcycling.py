"""Sparse upcycling: a mixture whose experts all begin as the feed-forward layer of a trained dense model."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from allyouneed.nn import Block, Experts, FeedForward, GatedExperts, GatedFeedForward

from .routing import SparseFeedForward, TopKRouter

_Model = TypeVar("_Model", bound=nn.Module)


def upcycle(
    model: _Model,
    experts: int,
    k: int = 2,
    *,
    capacity_factor: float | None = None,
    where: Callable[[int], bool] = lambda layer: True,
) -> _Model:
    """Give a copy of a dense model in which feed-forward layers have become mixtures of copies of themselves.

    Weights of the chosen experts add up to 1, so that the new model begins by computing what the old one does. What is
    new is the router.
    Source: Komatsuzaki et al. 2022, section 3; that weights may be normalised is theirs too.

    Args:
        model: has blocks whose feed-forward sublayers are `FeedForward` or `GatedFeedForward`.
        experts: copies in each mixture.
        k: chosen for each token.
        capacity_factor: as of `SparseFeedForward`.
        where: tells by a block's number, from 0, whether its layer is turned into a mixture; all are.

    Raises:
        ValueError: no layer was turned, or one of another kind, or numbers out of range.
    """
    model = copy.deepcopy(model)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    turned = [block for index, block in enumerate(blocks) if where(index)]
    if not turned:
        raise ValueError(f"of the model's {len(blocks)} blocks none was to be turned into a mixture")
    for block in turned:
        residual: Any = block.feed_forward
        residual.sublayer = mixture_of_copies(residual.sublayer, experts, k, capacity_factor)
    return model


def mixture_of_copies(
    dense: nn.Module, experts: int, k: int, capacity_factor: float | None = None
) -> SparseFeedForward:
    """Make a mixture whose experts are copies of a feed-forward layer.

    Raises:
        ValueError: a layer of another kind.
    """
    kinds: dict[type, type[Experts]] = {FeedForward: Experts, GatedFeedForward: GatedExperts}
    if type(dense) not in kinds or not isinstance(getattr(dense, "inner", None), nn.Linear):
        raise ValueError(
            f"a {type(dense).__name__} cannot be copied into experts: it must be a FeedForward or a GatedFeedForward "
            "with weights of its own, neither joined nor quantised"
        )
    layer: Any = dense
    hidden, width = layer.inner.weight.shape
    copies = kinds[type(dense)](experts, width, hidden, layer.activation, layer.inner.bias is not None)
    copies.to(layer.inner.weight)
    for name, maps in copies.named_children():
        if isinstance(maps, nn.ModuleList):
            for linear in maps:
                linear.load_state_dict(getattr(layer, name).state_dict())
    router = TopKRouter(width, experts, k, normalised=True).to(layer.inner.weight)
    return SparseFeedForward(router, copies, capacity_factor).train(dense.training)
