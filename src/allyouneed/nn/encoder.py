"""An encoder: blocks in which every token looks at every other."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention import attention_pattern
from .blocks import Block
from .initialise import initialise_xavier
from .positions import PositionScheme


class Encoder(nn.Module):
    """Token embeddings, blocks that look both ways, and a last norm (Vaswani et al. 2017, section 3.1).

    Weights start as `initialise_xavier` sets them; a room that wants others sets them after construction.

    Args:
        vocabulary: number of tokens.
        width: width of the residual stream.
        blocks: the layers, each with its own weights.
        positions: the position scheme; one for all layers.
        norm: applied after the last block; None where blocks are post-norm.
        embedding_scale: what embeddings are multiplied by; √width in Vaswani et al. 2017, section 3.4.
        dropout: probability of dropping a coordinate of the embeddings in training.

    Raises:
        ValueError: no tokens in the vocabulary, or no blocks.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        blocks: Sequence[Block],
        *,
        positions: PositionScheme,
        norm: nn.Module | None = None,
        embedding_scale: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if vocabulary < 1 or not blocks:
            raise ValueError(f"an encoder needs a token and a block; got vocabulary {vocabulary}, {len(blocks)} blocks")
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_scale = embedding_scale
        self.positions = positions
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        initialise_xavier(self)

    def forward(
        self, tokens: Int[Tensor, "batch length"], *, present: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Give each token's vector after the last block and norm.

        Args:
            tokens: token ids.
            present: False where a token is padding, on the left or on the right; what padding tokens themselves are
                given is meaningless.

        Raises:
            ValueError: sequences of no tokens, or what the position scheme refuses.
        """
        length = tokens.shape[1]
        if length == 0:
            raise ValueError("an encoder was given sequences of no tokens; it needs at least one")
        if present is None:
            positions = torch.arange(length, device=tokens.device)[None]
        else:
            positions = (present.long().cumsum(1) - 1).clamp(min=0)
        pattern = attention_pattern(
            self.positions,
            queries=length,
            keys=length,
            causal=False,
            present=present,
            rotation=self.positions.rotation(positions),
            device=tokens.device,
        )
        embeddings = self.embedding(tokens) * self.embedding_scale
        hidden = self.dropout(self.positions.embed(embeddings, positions))
        for block in self.blocks:
            hidden = block(hidden, pattern)
        return self.norm(hidden)
