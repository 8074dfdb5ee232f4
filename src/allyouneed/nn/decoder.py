"""A decoder: a causal language model composed of blocks and a position scheme."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention import attention_pattern
from .blocks import Block
from .cache import KeyValueCache
from .initialise import initialise_xavier
from .positions import PositionScheme


class Decoder(nn.Module):
    """Token embeddings, blocks, a last norm, and a projection to the vocabulary.

    Weights start as `initialise_xavier` sets them; a room that wants others sets them after construction.

    Args:
        vocabulary: number of tokens.
        width: width of the residual stream.
        blocks: the layers, each with its own weights.
        positions: the position scheme; one for all layers.
        norm: applied after the last block; None where blocks are post-norm.
        tied: whether the output projection is the embedding table (Press & Wolf 2017).
        embedding_scale: what embeddings are multiplied by; √width in Vaswani et al. 2017, section 3.4.
        dropout: probability of dropping a coordinate of the embeddings in training.
        context: the most tokens that the model was trained to read, for positions that would go on; more are refused.

    Attributes:
        vocabulary: number of tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        blocks: Sequence[Block],
        *,
        positions: PositionScheme,
        norm: nn.Module | None = None,
        tied: bool = True,
        embedding_scale: float = 1.0,
        dropout: float = 0.0,
        context: int | None = None,
    ):
        super().__init__()
        if vocabulary < 1 or not blocks:
            raise ValueError(f"a decoder needs a token and a block; got vocabulary {vocabulary}, {len(blocks)} blocks")
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_scale = embedding_scale
        self.positions = positions
        self._context = context
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        self.head: Any = None if tied else nn.Linear(width, vocabulary, bias=False)
        # Multiplies vectors by the output projection: `arrange_for_inference` puts a faster product here.
        self.project: Callable[[Tensor, Tensor], Tensor] = F.linear
        # What `compile_decoder` makes of the blocks.
        self.compiled: Any = None
        initialise_xavier(self)

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each token.

        Args:
            tokens: token ids.
            present: False where a token is padding, on the left or on the right; what padding tokens themselves are
                given is meaningless.
            cache: what earlier calls computed for the tokens before these; these are appended.
        """
        return self.logits(self.hidden(tokens, present=present, cache=cache))

    def hidden(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: KeyValueCache | None = None,
        prefix: int = 0,
    ) -> Float[Tensor, "batch length width"]:
        """Give each token's vector after the last block and norm; other arguments as in `forward`.

        Args:
            tokens: token ids.
            present: False where a token is padding.
            cache: what earlier calls computed.
            prefix: the first so many tokens, padding counted, see one another whatever their order. Those that come
                with a cache must come in one call.

        Raises:
            ValueError: no tokens, or more than the model was trained to read, those in the cache counted.
        """
        batch, length = tokens.shape
        if length == 0:
            raise ValueError("a decoder was given sequences of no tokens; it needs at least one")
        earlier = 0 if cache is None else len(cache)
        if self._context is not None and earlier + length > self._context:
            raise ValueError(
                f"{earlier + length} tokens are more than the model's context of {self._context}: it was not trained "
                "to read so far. Shorten the input, or give the configuration another context"
            )
        if cache is not None:
            present = cache.joined(present, batch, length, tokens.device)
        if present is None:
            self.positions.check(earlier + length - 1)
            positions = torch.arange(earlier, earlier + length, device=tokens.device)[None]
        else:
            positions = (present.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        pattern = attention_pattern(
            self.positions,
            queries=length,
            keys=earlier + length,
            causal=True,
            prefix=prefix,
            present=present,
            rotation=self.positions.rotation(positions),
            device=tokens.device,
        )
        embeddings = self.embedding(tokens) * self.embedding_scale
        hidden = self.dropout(self.positions.embed(embeddings, positions))
        if cache is not None and self.compiled is not None and self.compiled.takes(hidden, cache):
            hidden = self.compiled.step(hidden, pattern, cache)
        else:
            for index, block in enumerate(self.blocks):
                hidden = block(hidden, pattern, cache=None if cache is None else cache.layers[index])
        if cache is not None:
            cache.present = present
        return self.norm(hidden)

    def last_logits(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch vocabulary"]:
        """Give the logits of the token that follows the last, and no others; arguments as in `forward`."""
        return self.logits(self.hidden(tokens, present=present, cache=cache)[:, -1])

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads; None where nothing sets a limit."""
        return self.positions.limit if self._context is None else self._context

    def logits(self, hidden: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes vocabulary"]:
        """Map vectors to logits over the vocabulary."""
        if self.head is not None and not isinstance(self.head, nn.Linear):
            return self.head(hidden)
        return self.project(hidden, self.output_weight)

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection: the embedding table where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> KeyValueCache:
        """Make an empty key-value cache for this model."""
        windows = [getattr(block, "window", None) for block in self.blocks]
        return KeyValueCache(len(self.blocks), limit, capacity, windows)
