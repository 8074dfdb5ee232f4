"""An encoder: blocks in which every token looks at every other."""

from collections import deque
from collections.abc import Iterator, Sequence

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
        embedding_norm: applied to the embeddings, positions included; None applies none (BERT has one).
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
        embedding_norm: nn.Module | None = None,
        embedding_scale: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if vocabulary < 1 or not blocks:
            raise ValueError(f"an encoder needs a token and a block; got vocabulary {vocabulary}, {len(blocks)} blocks")
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_scale = embedding_scale
        self.positions = positions
        self.embedding_norm = embedding_norm or nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        initialise_xavier(self)

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        added: Float[Tensor, "batch length width"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch length width"]:
        """Give each token's vector after the last block and norm.

        Args:
            tokens: token ids.
            present: False where a token is padding, on the left or on the right; what padding tokens themselves are
                given is meaningless.
            added: put to the embeddings of tokens and positions, such as BERT's of segments.
            causal: hide from each token those that follow it, as a left-to-right model does.

        Raises:
            ValueError: sequences of no tokens, or what the position scheme refuses.
        """
        # The last of them, without holding the others.
        return self.norm(deque(self.layers(tokens, present=present, added=added, causal=causal), maxlen=1).pop())

    def layers(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        added: Float[Tensor, "batch length width"] | None = None,
        causal: bool = False,
    ) -> Iterator[Tensor]:
        """Give the embeddings, then what each block makes of them, one after the other, before the last norm.

        Arguments and errors are those of `forward`.
        """
        length = tokens.shape[1]
        if length == 0:
            raise ValueError("an encoder was given sequences of no tokens; it needs at least one")
        if present is None:
            self.positions.check(length - 1)
            positions = torch.arange(length, device=tokens.device)[None]
        else:
            positions = (present.long().cumsum(1) - 1).clamp(min=0)
        pattern = attention_pattern(
            self.positions,
            queries=length,
            keys=length,
            causal=causal,
            present=present,
            rotation=self.positions.rotation(positions),
            device=tokens.device,
        )
        embeddings = self.positions.embed(self.embedding(tokens) * self.embedding_scale, positions)
        hidden = self.dropout(self.embedding_norm(embeddings if added is None else embeddings + added))
        yield hidden
        for block in self.blocks:
            hidden = block(hidden, pattern)
            yield hidden
