"""How patches learn where they stand: the four kinds of positions that Table 8 compares (appendix D.4)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allyouneed.nn import fused_attention

Grid = tuple[int, int]
"""Patches from top to bottom, and from left to right."""

DEVIATION = 0.02
"""Of initial position vectors, as in the released code."""


def resize(table: Float[Tensor, "1 patches width"], old: Grid, new: Grid) -> Float[Tensor, "1 resized width"]:
    """Interpolate the vectors of a grid of patches, bicubically, to those of another grid over the same image.

    Section 3.2: at another resolution a position is where it is in the original image.
    """
    if old == new:
        return table
    planes = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(planes, size=new, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)


class PatchPositions(nn.Module):
    """The seam that positions of patches plug into. As it stands, patches are a bag: they have none.

    Tokens are a class token and, after it, the patches row by row.
    """

    def added(self, grid: Grid) -> Float[Tensor, "1 tokens width"] | None:
        """Give what is added to the embeddings of the class token and of the patches of a grid, or None."""
        return None

    @property
    def kernel(self) -> Callable[..., Tensor]:
        """What computes attention from queries, keys and values; the usual function where positions take no part."""
        return fused_attention


class LearnedPositions(PatchPositions):
    """A learned vector for each place in the row of patches, and one for the class token: the paper's own (1-D).

    Args:
        grid: of the images that the model is pre-trained on.
        width: of the embeddings.
    """

    def __init__(self, grid: Grid, width: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=DEVIATION)

    def added(self, grid: Grid) -> Float[Tensor, "1 tokens width"]:
        """Give the vectors, those of patches interpolated where the grid is another."""
        return torch.cat((self.table[:, :1], resize(self.table[:, 1:], self.grid, grid)), 1)


class AxisPositions(PatchPositions):
    """Half a vector learned for each column and half for each row, put together for each patch (2-D).

    The paper does not say what the class token has; here it has a vector of its own.

    Args:
        grid: of the images that the model is pre-trained on.
        width: of the embeddings; even.

    Raises:
        ValueError: an odd width.
    """

    def __init__(self, grid: Grid, width: int):
        super().__init__()
        if width % 2:
            raise ValueError(f"width {width} is odd: columns and rows have half of it each")
        self.grid = grid
        self.first = nn.Parameter(torch.empty(1, 1, width))
        self.columns = nn.Parameter(torch.empty(grid[1], width // 2))
        self.rows = nn.Parameter(torch.empty(grid[0], width // 2))
        for vectors in (self.first, self.columns, self.rows):
            nn.init.trunc_normal_(vectors, std=DEVIATION)

    def added(self, grid: Grid) -> Float[Tensor, "1 tokens width"]:
        """Give the vectors, those of patches interpolated where the grid is another."""
        height, width = self.grid
        columns = self.columns.expand(height, width, -1)
        rows = self.rows[:, None].expand(height, width, -1)
        table = torch.cat((columns, rows), -1).flatten(0, 1)[None]
        return torch.cat((self.first, resize(table, self.grid, grid)), 1)


class RelativePositions(PatchPositions):
    """A learned key for each distance in the row of tokens, which queries meet beside the patches' own keys.

    query · (key + distance's key), over the root of the head's width; the vectors are shared by heads and layers. With
    no grid in it, it is not interpolated: another resolution is refused.

    Args:
        grid: of the images that the model is trained on.
        head_width: of the attention's heads.
    """

    def __init__(self, grid: Grid, head_width: int):
        super().__init__()
        self.tokens = 1 + grid[0] * grid[1]
        self.table = nn.Parameter(torch.empty(2 * self.tokens - 1, head_width))
        nn.init.trunc_normal_(self.table, std=DEVIATION)

    def added(self, grid: Grid) -> None:
        """Add nothing.

        Raises:
            ValueError: a grid of another number of patches.
        """
        if 1 + grid[0] * grid[1] != self.tokens:
            raise ValueError(
                f"relative positions were made for {self.tokens - 1} patches, and an image has {grid[0]} × {grid[1]}"
            )

    @property
    def kernel(self) -> Callable[..., Tensor]:
        """Attention with the additional logits."""
        return self.attend

    def attend(
        self,
        query: Float[Tensor, "batch heads tokens head_width"],
        key: Float[Tensor, "batch heads tokens head_width"],
        value: Float[Tensor, "batch heads tokens head_width"],
        *,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> Float[Tensor, "batch heads tokens head_width"]:
        """Attend with the queries' logits over distances as a bias."""
        places = torch.arange(self.tokens, device=query.device)
        distances = places[:, None] - places + self.tokens - 1
        over_all = query @ self.table.to(query.dtype).T * query.shape[-1] ** -0.5
        bias = over_all.gather(-1, distances.expand(*query.shape[:2], -1, -1))
        return fused_attention(query, key, value, attn_mask=bias if attn_mask is None else bias + attn_mask, **options)
