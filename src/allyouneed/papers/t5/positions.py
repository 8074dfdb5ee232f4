"""Relative position biases: a learned scalar for each head and each bucket of offsets, added to attention scores."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allyouneed.nn import PositionScheme


def relative_buckets(
    offsets: Int[Tensor, "*axes"], *, bidirectional: bool, buckets: int = 32, furthest: int = 128
) -> Int[Tensor, "*axes"]:
    """Sort offsets, key position minus query position, into buckets 0 to `buckets` - 1.

    Looking both ways, the first half of the buckets is for keys at and before the query, the other half for keys after
    it; looking back only, all are for keys before it, and keys after it count as distance 0. Of the buckets of a side
    the first half has a distance each, the others grow wider as the logarithm, and the last one holds `furthest` and
    all beyond.

    Source: Raffel et al. 2020, section 2.1, which gives 32 buckets and 128; that small distances have their own, and
    that directions are told apart, is as in the released models.

    Args:
        offsets: of keys from queries.
        bidirectional: whether keys after the query are looked at.
        buckets: how many there are; even where bidirectional.
        furthest: the distance from which on all share a bucket.

    Raises:
        ValueError: too few buckets, an odd number for two directions, or `furthest` within the exact ones.
    """
    sides = 2 if bidirectional else 1
    if buckets < 2 * sides or buckets % sides:
        kind = "an even number from 4 on" if bidirectional else "at least 2"
        raise ValueError(
            f"{buckets} buckets cannot hold distances {'of two sides' if sides > 1 else ''}: it must be {kind}"
        )
    of_side = buckets // sides
    exact = of_side // 2
    if furthest <= exact:
        raise ValueError(
            f"furthest {furthest} is out of range: {exact} distances have buckets of their own, so it must be more"
        )
    distance = offsets.abs() if bidirectional else (-offsets).clamp(min=0)
    # Where a distance is below `exact` the logarithm is not used; clamped, it is at least a number.
    widening = torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact) * (of_side - exact)
    wide = (exact + widening.long()).clamp(max=of_side - 1)
    found = torch.where(distance < exact, distance, wide)
    return found + of_side * (offsets > 0) if bidirectional else found


class RelativePositions(PositionScheme):
    """Add to the score of query i and key j what the head has learned for the bucket of j - i; the same in all layers.

    Source: Raffel et al. 2020, section 2.1. Nothing is added to embeddings, and no length is refused. Distances are
    between places in the batch.

    Args:
        heads: of each attention layer.
        bidirectional: whether tokens look ahead, as in an encoder.
        buckets: of offsets.
        furthest: the distance from which on all share a bucket.

    Raises:
        ValueError: fewer than one head, or as `relative_buckets`.
    """

    def __init__(self, heads: int, *, bidirectional: bool, buckets: int = 32, furthest: int = 128):
        super().__init__()
        if heads < 1:
            raise ValueError(f"relative positions need at least one head, not {heads}")
        # To complain now, and not at the first call.
        relative_buckets(
            torch.zeros(1, dtype=torch.int64), bidirectional=bidirectional, buckets=buckets, furthest=furthest
        )
        self.bidirectional = bidirectional
        self.furthest = furthest
        self.table = nn.Embedding(buckets, heads)

    def bias(
        self, query_positions: Int[Tensor, " queries"], key_positions: Int[Tensor, " keys"]
    ) -> Float[Tensor, "heads queries keys"]:
        """Give what each head adds to the score of each query and key."""
        found = relative_buckets(
            key_positions - query_positions[:, None],
            bidirectional=self.bidirectional,
            buckets=self.table.num_embeddings,
            furthest=self.furthest,
        )
        return self.table(found).permute(2, 0, 1)
