"""Exact attention, tile by tile: a forward pass with a running softmax, a backward pass that computes scores anew."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .accesses import SlowMemory

FAST_MEMORY = 65_536
"""Numbers that fit into fast memory where nothing else is said: 64 queries and 256 keys of width 64 at a time."""


@dataclass(frozen=True)
class Tile:
    """How much of the scores is computed at a time.

    Attributes:
        queries: the tile's rows, B_r.
        keys: its columns, B_c.

    Raises:
        ValueError: fewer than one of either.
    """

    queries: int
    keys: int

    def __post_init__(self) -> None:
        if self.queries < 1 or self.keys < 1:
            raise ValueError(f"a tile of {self.queries} queries and {self.keys} keys: it needs at least one of each")

    @classmethod
    def fitting(cls, fast_memory: int, head_width: int) -> "Tile":
        """Give the tile of Algorithm 1, line 1: ⌈M/4d⌉ keys, and as many queries but at most d.

        Args:
            fast_memory: M, the numbers that fast memory holds.
            head_width: d.

        Raises:
            ValueError: fast memory that holds less than a vector.
        """
        if not 1 <= head_width <= fast_memory:
            raise ValueError(f"fast memory for {fast_memory} numbers cannot hold a vector of width {head_width}")
        keys = math.ceil(fast_memory / (4 * head_width))
        return cls(min(keys, head_width), keys)


def _finite(maximum: Tensor) -> Tensor:
    """Give what scores are lowered by: of a row that sees nothing the maximum is -∞, and -∞ - -∞ is no number."""
    return maximum.masked_fill(maximum == -math.inf, 0.0)


def _nonzero(total: Tensor) -> Tensor:
    """Give what weights are divided by: of a row that sees nothing all are 0, and so is their sum."""
    return total.masked_fill(total == 0.0, 1.0)


@dataclass(frozen=True)
class TiledAttention:
    """FlashAttention's two passes, line by line (Algorithm 2, or 5 with blocks left out; Algorithm 4).

    Comments give the lines. In both passes keys and values come block by block in the outer loop, queries in the inner
    one; only vectors as long as the queries are kept beside inputs, output and gradients.

    Attributes:
        tile: the block sizes.
        scale: τ, which scores are multiplied by.
        causal: no query looks at a later key.
        mask: True where a query may look (bool), or added to the scores (float); of four axes, each whole or 1.
        blocks: False for a tile that is left out; None where there is none (section 3.3).
        dropout: probability of dropping a weight.
        seed: the state 𝓡 that the drawing of dropped weights starts from, in both passes.
        memory: counts.
    """

    tile: Tile
    scale: float
    causal: bool = False
    mask: Tensor | None = None
    blocks: Bool[Tensor, "row_blocks column_blocks"] | None = None
    dropout: float = 0.0
    seed: int = 0
    memory: SlowMemory = field(default_factory=SlowMemory)

    def forward(
        self,
        query: Float[Tensor, "batch heads queries head_width"],
        key: Float[Tensor, "batch heads keys head_width"],
        value: Float[Tensor, "batch heads keys value_width"],
    ) -> tuple[
        Float[Tensor, "batch heads queries value_width"],
        Float[Tensor, "batch heads queries 1"],
        Float[Tensor, "batch heads queries 1"],
    ]:
        """Give O, the sums ℓ of each query's exponentials, and its largest score m, all in 32 bits or more."""
        memory, generator = self.memory, self._generator(query)  # 1
        wide = {"dtype": torch.promote_types(query.dtype, torch.float32), "device": query.device}
        output = torch.zeros(*query.shape[:-1], value.shape[-1], **wide)  # 3
        row_sum = torch.zeros(*query.shape[:-1], 1, **wide)
        row_max = torch.full_like(row_sum, -math.inf)
        for columns, visited in self._tiles(query.shape[-2], key.shape[-2]):  # 6
            key_block, value_block = memory.load(key[..., columns, :], value[..., columns, :])  # 7
            for rows in visited:  # 8
                places = [matrix[..., rows, :] for matrix in (query, output, row_sum, row_max)]
                query_block, old_output, old_sum, old_max = memory.load(*places)  # 9
                scores = self._masked(self.scale * query_block @ key_block.mT, rows, columns)  # 10, 11
                memory.hold(key_block, value_block, query_block, old_output, old_sum, old_max, scores)
                tile_max = scores.amax(-1, keepdim=True)  # 12
                weights = scores.sub_(_finite(tile_max)).exp_()
                tile_sum = weights.sum(-1, keepdim=True)
                new_max = torch.maximum(old_max, tile_max)  # 13
                old_share = (old_max - _finite(new_max)).exp_().mul_(old_sum)
                tile_share = (tile_max - _finite(new_max)).exp_()
                new_sum = torch.addcmul(old_share, tile_share, tile_sum)
                if generator is not None:
                    weights.mul_(self._kept(weights, generator))  # 14
                mixed = (old_share * old_output).addcmul_(tile_share, weights @ value_block)
                memory.write(places[1], mixed.div_(_nonzero(new_sum)))  # 15
                memory.write(places[2], new_sum)  # 16
                memory.write(places[3], new_max)
        return output, row_sum, row_max

    def backward(
        self,
        query: Float[Tensor, "batch heads queries head_width"],
        key: Float[Tensor, "batch heads keys head_width"],
        value: Float[Tensor, "batch heads keys value_width"],
        output: Float[Tensor, "batch heads queries value_width"],
        row_sum: Float[Tensor, "batch heads queries 1"],
        row_max: Float[Tensor, "batch heads queries 1"],
        output_gradient: Float[Tensor, "batch heads queries value_width"],
    ) -> tuple[
        Float[Tensor, "batch heads queries head_width"],
        Float[Tensor, "batch heads keys head_width"],
        Float[Tensor, "batch heads keys value_width"],
    ]:
        """Give dQ, dK and dV, in 32 bits or more."""
        memory, generator = self.memory, self._generator(query)  # 1
        wide = row_sum.dtype
        query_gradient = torch.zeros_like(query, dtype=wide)  # 5
        key_gradient, value_gradient = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        for columns, visited in self._tiles(query.shape[-2], key.shape[-2]):  # 6
            key_block, value_block = memory.load(key[..., columns, :], value[..., columns, :])  # 7
            key_sum, value_sum = torch.zeros_like(key_block), torch.zeros_like(value_block)  # 8
            for rows in visited:  # 9
                matrices = (query, output, output_gradient, query_gradient, row_sum, row_max)
                loaded = memory.load(*(matrix[..., rows, :] for matrix in matrices))  # 10
                query_block, output_block, upstream, query_sum, total, maximum = loaded
                scores = self._masked(self.scale * query_block @ key_block.mT, rows, columns)  # 11, 12
                weights = scores.sub_(_finite(maximum)).exp_().div_(_nonzero(total))  # 13
                kept = None if generator is None else self._kept(weights, generator)  # 14
                dropped = weights if kept is None else weights * kept  # 15
                value_sum.add_(dropped.mT @ upstream)  # 16
                weights_gradient = upstream @ value_block.mT  # 17
                if kept is not None:
                    weights_gradient.mul_(kept)  # 18
                memory.hold(key_block, value_block, key_sum, value_sum, *loaded, weights, weights_gradient)
                along = (upstream * output_block).sum(-1, keepdim=True)  # 19
                # With P = softmax(S): ∂P_ij/∂S_ik = P_ij (δ_jk − P_ik), so dS_ij = P_ij (dP_ij − Σ_k P_ik dP_ik). That
                # sum is dO_i · Σ_k P_ik v_k = dO_i · O_i, which needs no whole row of P.
                scores_gradient = weights_gradient.sub_(along).mul_(weights)  # 20
                query_sum = query_sum.add(scores_gradient @ key_block, alpha=self.scale)
                memory.write(query_gradient[..., rows, :], query_sum)  # 21
                key_sum.add_(scores_gradient.mT @ query_block, alpha=self.scale)  # 22
            memory.write(key_gradient[..., columns, :], key_sum)  # 24
            memory.write(value_gradient[..., columns, :], value_sum)
        return query_gradient, key_gradient, value_gradient

    def _tiles(self, queries: int, keys: int) -> Iterator[tuple[slice, list[slice]]]:
        """Give each block of keys with the blocks of queries that look at it."""
        for j, start in enumerate(range(0, keys, self.tile.keys)):
            # With a causal mask, tiles wholly above the diagonal are all -∞.
            first = start // self.tile.queries if self.causal else 0
            rows = range(math.ceil(queries / self.tile.queries))[first:]
            visited = [
                slice(i * self.tile.queries, min(queries, (i + 1) * self.tile.queries))
                for i in rows
                if self.blocks is None or self.blocks[i, j]
            ]
            yield slice(start, min(keys, start + self.tile.keys)), visited

    def _masked(self, scores: Tensor, rows: slice, columns: slice) -> Tensor:
        """Hide, in place, what the queries of a tile may not look at."""
        if self.causal and columns.stop - 1 > rows.start:
            places = [torch.arange(part.start, part.stop, device=scores.device) for part in (rows, columns)]
            scores.masked_fill_(places[1] > places[0][:, None], -math.inf)
        if self.mask is not None:
            # An axis of 1 stands for the whole.
            part = self.mask[..., rows if self.mask.shape[-2] > 1 else slice(None), :]
            part = part[..., columns if self.mask.shape[-1] > 1 else slice(None)]
            self.memory.read += part.numel()
            if part.dtype == torch.bool:
                scores.masked_fill_(~part, -math.inf)
            else:
                scores.add_(part)
        return scores

    def _generator(self, like: Tensor) -> torch.Generator | None:
        return torch.Generator(like.device).manual_seed(self.seed) if self.dropout else None

    def _kept(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Draw 1/(1 - p) for a weight that is kept and 0 for one that is dropped, in the order of the tiles."""
        return torch.empty_like(weights).bernoulli_(1.0 - self.dropout, generator=generator).div_(1.0 - self.dropout)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, algorithm: TiledAttention) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            output, row_sum, row_max = algorithm.forward(query, key, value)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, row_sum, row_max)
        ctx.algorithm = algorithm
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, *_ = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            found = ctx.algorithm.backward(*ctx.saved_tensors, gradients[0])
        return *(gradient.to(query.dtype) for gradient in found), None


def flash_attention(
    query: Float[Tensor, "batch heads queries head_width"],
    key: Float[Tensor, "batch heads keys head_width"],
    value: Float[Tensor, "batch heads keys value_width"],
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    tile: Tile | None = None,
    block_mask: Bool[Tensor, "row_blocks column_blocks"] | None = None,
    memory: SlowMemory | None = None,
) -> Float[Tensor, "batch heads queries value_width"]:
    """Compute attention without ever holding all of its scores.

    Takes the keywords of `torch.nn.functional.scaled_dot_product_attention`, so that it can be the `kernel` of
    `nn.Attention`. A query that may look nowhere gets zeros, and gives no gradient. First derivatives only.

    Source: Dao et al. 2022, Algorithms 2, 4 and 5.

    Args:
        query: Q.
        key: K.
        value: V.
        attn_mask: True where a query may look (bool), or added to the scores (float, without a gradient); broadcasts
            to (batch, heads, queries, keys). Padded keys are told by (batch, 1, 1, keys), which is linear in length.
        dropout_p: probability of dropping a weight; what is dropped follows torch's seed, and the tile.
        is_causal: no query looks at a later key; as many queries as keys.
        scale: what scores are multiplied by; 1/√(head width) where None.
        tile: block sizes; what fits into `FAST_MEMORY` where None.
        block_mask: False for a tile that is left out (section 3.3), one row for each block of queries.
        memory: counts accesses to slow memory, those of the backward pass too.

    Raises:
        ValueError: shapes or types that do not belong together, a mask that wants a gradient, or a probability out of
            range.
    """
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    whole = (*query.shape[:-1], keys)
    if key.shape != (*query.shape[:2], keys, width) or value.shape[:-1] != key.shape[:-1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise ValueError(f"query, key and value of shapes {shapes} do not belong together")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}: they must be the same"
        )
    if is_causal and queries != keys:
        raise ValueError(f"causal attention of {queries} queries to {keys} keys: say by a mask which keys are earlier")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is {dropout_p}: it must be at least 0 and below 1")
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
        if attn_mask.dim() > 4 or any(own not in (1, of) for own, of in zip(attn_mask.shape, whole, strict=True)):
            raise ValueError(f"a mask of shape {tuple(attn_mask.shape)} does not broadcast to {whole}")
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise ValueError(f"a mask of {attn_mask.dtype}: it must be bool, or added to the scores")
        if attn_mask.requires_grad:
            raise ValueError("the mask wants a gradient: it is given none here")
    tile = tile or Tile.fitting(FAST_MEMORY, width)
    blocks = (math.ceil(queries / tile.queries), math.ceil(keys / tile.keys))
    if block_mask is not None and tuple(block_mask.shape) != blocks:
        raise ValueError(
            f"a block mask of shape {tuple(block_mask.shape)}: {queries} queries and {keys} keys in tiles of "
            f"{tile.queries} by {tile.keys} are {blocks[0]} by {blocks[1]} blocks"
        )
    algorithm = TiledAttention(
        tile=tile,
        scale=1.0 / math.sqrt(width) if scale is None else scale,
        causal=is_causal,
        mask=attn_mask,
        blocks=block_mask,
        dropout=dropout_p,
        seed=int(torch.randint(2**62, ())) if dropout_p else 0,
        memory=SlowMemory() if memory is None else memory,
    )
    output = _FlashAttention.apply(query, key, value, algorithm)
    assert isinstance(output, Tensor)
    return output


def butterfly(blocks: int) -> Bool[Tensor, "row_blocks column_blocks"]:
    """Give the fixed block mask of section 3.3: block i looks at itself and at i ⊕ 2ᵏ for every k.

    Of n blocks in a row about 1 + log₂ n are kept. Source: the flat block butterfly of Dao, Chen et al. 2022.

    Args:
        blocks: in a row and in a column.

    Raises:
        ValueError: no blocks.
    """
    if blocks < 1:
        raise ValueError(f"a block mask of {blocks} blocks: there must be at least one")
    places = torch.arange(blocks)
    apart = places[:, None] ^ places
    return (apart & (apart - 1)) == 0
