"""Locally banded attention: each token looks at itself and at the tokens just before it, at no cost for the others."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allyouneed.nn import fused_attention


def banded_mask(
    queries: int, keys: int, band: int, device: torch.device | str | None = None
) -> Bool[Tensor, "queries keys"]:
    """Give the pattern as a dense matrix, True where a query looks: itself and the `band` tokens before it.

    Source: Child et al. 2019, section 4.2: token i attends to {t, …, i} with t = max(0, i − l).

    Args:
        queries: number of tokens that look; they are the last of the keys.
        keys: number of tokens that are looked at.
        band: l, the number of earlier tokens that are seen.
        device: where to put it.
    """
    key_places = torch.arange(keys, device=device)
    distance = key_places[keys - queries :, None] - key_places
    return (distance >= 0) & (distance <= band)


@dataclass(frozen=True)
class BandedAttention:
    """A kernel for `nn.Attention` that lets each query look at itself and the `band` keys before it.

    Queries are taken in blocks, and each block is given no keys but those that one of its queries may see, so that time
    and memory grow with length times band and not with the length squared. A pattern's own mask still holds. No token
    ever looks ahead, whatever the pattern says: in an encoder this kernel has no place.

    Distances are counted in places of the batch: where padding stands between a row's tokens it takes up the band.

    Attributes:
        band: the number of earlier tokens that are seen.

    Raises:
        ValueError: a band below 1.
    """

    band: int

    def __post_init__(self) -> None:
        if self.band < 1:
            raise ValueError(f"a band of {self.band} tokens is out of range: it must be at least 1")

    def __call__(
        self,
        query: Float[Tensor, "batch heads queries head_width"],
        key: Float[Tensor, "batch heads keys head_width"],
        value: Float[Tensor, "batch heads keys head_width"],
        *,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch heads queries head_width"]:
        """Compute attention as `nn.fused_attention` does, within the band; `is_causal` is so in any case."""
        queries, keys = query.shape[2], key.shape[2]
        earlier = keys - queries
        if is_causal and keys <= self.band + 1:
            # Everything that precedes a query is within its band.
            return fused_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=True)
        blocks = []
        for start in range(0, queries, self.band):
            end = min(start + self.band, queries)
            seen = slice(max(0, earlier + start - self.band), earlier + end)
            mask = None if attn_mask is None else attn_mask[..., start:end, seen]
            if end - start > 1:
                # All that a single query is given is within its band.
                mask = _joined(banded_mask(end - start, seen.stop - seen.start, self.band, query.device), mask)
            blocks.append(
                fused_attention(
                    query[:, :, start:end], key[:, :, seen], value[:, :, seen], attn_mask=mask, dropout_p=dropout_p
                )
            )
        return torch.cat(blocks, dim=2)


def _joined(band: Bool[Tensor, "queries keys"], given: Tensor | None) -> Tensor:
    if given is None:
        return band
    return given & band if given.dtype == torch.bool else given.masked_fill(~band, -torch.inf)
