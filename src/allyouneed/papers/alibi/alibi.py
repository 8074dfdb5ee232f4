"""Attention with linear biases: a penalty on attention scores that grows with distance, and no position embeddings."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allyouneed.nn import PositionScheme


def alibi_slopes(heads: int) -> Float[Tensor, " heads"]:
    """Give each head's slope: a geometric sequence from 2^(-8/n) to 2^-8 for n heads.

    Source: Press et al. 2022, section 3. The paper's rule is for powers of two. For other counts we follow the
    authors' released models and those that came after (BLOOM, MPT): the slopes of the power of two below, then every
    other slope of the power of two above.

    Raises:
        ValueError: fewer than one head.
    """
    if heads < 1:
        raise ValueError(f"ALiBi needs at least one head, not {heads}")
    below = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8.0 / below * torch.arange(1, below + 1, dtype=torch.float64))
    odd = 2 * torch.arange(heads - below, dtype=torch.float64) + 1
    between = 2.0 ** (-4.0 / below * odd)
    return torch.cat((slopes, between)).float()


class ALiBi(PositionScheme):
    """Add -slope · distance to each attention score: nearer keys win, and no distance is unseen territory.

    Source: Press et al. 2022, section 3. Scores become q·k/√d + slope · -(i - j) for query i and key j ≤ i. Nothing
    is learned, nothing is added to embeddings or values.

    In a model that also looks ahead (an encoder) the penalty is on the distance either way.

    Args:
        heads: number of attention heads, each with a slope of its own; any count.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.slopes = alibi_slopes(heads)  # Not a buffer: cast to 16 bits with a model, slopes would be rounded.

    def bias(
        self, query_positions: Int[Tensor, " queries"], key_positions: Int[Tensor, " keys"]
    ) -> Float[Tensor, "heads queries keys"]:
        """Give the bias of every query and key: zero at distance zero, falling linearly from there."""
        distance = (query_positions[:, None] - key_positions).abs()
        return -self.slopes.to(distance.device)[:, None, None] * distance
