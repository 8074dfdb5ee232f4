"""An encoder and a decoder that looks at what was encoded, joined into a model of one sequence given another."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention import AttentionPattern
from .blocks import Block
from .cache import KeyValueCache
from .decoder import Decoder
from .layer_cache import LayerCache


class CrossLayerCache(LayerCache):
    """What one layer of a decoder looks at: the encoded source, and the target tokens before.

    Where it does not keep, it hands tokens through, so that gradients flow: so it is used in training.

    Args:
        source: the encoded sources.
        pattern: which of their tokens may be looked at.
        keep: whether keys and values are kept for later calls, those of the source and those of target tokens.
        limit: the most target tokens that may be held; no limit where None.
        capacity: target tokens to make room for at the start.
    """

    def __init__(
        self,
        source: Float[Tensor, "sources keys width"],
        pattern: AttentionPattern,
        keep: bool,
        limit: int | None = None,
        capacity: int = 64,
    ):
        super().__init__(limit, capacity)
        self.keep = keep
        self.source = source
        self.pattern = pattern
        self.of_source = _SourceCache(capacity=source.shape[1]) if keep else None

    def append(
        self,
        keys: Float[Tensor, "batch key_value_heads new head_width"],
        values: Float[Tensor, "batch key_value_heads new head_width"],
    ) -> tuple[
        Float[Tensor, "batch key_value_heads keys head_width"], Float[Tensor, "batch key_value_heads keys head_width"]
    ]:
        """Add keys and values of target tokens, as `LayerCache.append` does; hand them through where none are kept."""
        return super().append(keys, values) if self.keep else (keys, values)

    def new_source(self) -> Float[Tensor, "sources new width"]:
        """Give the source tokens whose keys and values are not held yet: all of them at first, none after that."""
        return self.source if self.of_source is None or self.of_source.length == 0 else self.source[:, :0]

    def select(self, rows: Int[Tensor, " rows"], sources: Int[Tensor, " kept"] | None) -> None:
        """Let each row continue the old row that it names, and keep these sources; all where None."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)
        if sources is not None:
            self.source = self.source.index_select(0, sources)
            if self.pattern.mask is not None:
                self.pattern = AttentionPattern(mask=self.pattern.mask.index_select(0, sources))
            if self.of_source is not None:
                self.of_source.select(sources)


class _SourceCache(LayerCache):
    """Keys and values of the source, computed once."""

    def select(self, sources: Int[Tensor, " kept"]) -> None:
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.index_select(0, sources), self._values.index_select(0, sources)


class CrossCache(KeyValueCache):
    """The caches of all layers of a decoder that looks at a source: the state of a decoding.

    Rows are target sequences. Each source has as many rows as any other, and they stand together, so that the beams of
    a source look at its keys and values without a copy for each.

    Args:
        layers: number of decoder blocks.
        source: the encoded sources.
        present: False where a source token is padding; None where none is.
        keep: whether keys and values are kept for later calls.
        limit: the most target tokens that may be held; no limit where None.
        capacity: target tokens to make room for at the start.
    """

    layers: list[CrossLayerCache]

    def __init__(
        self,
        layers: int,
        source: Float[Tensor, "sources keys width"],
        present: Bool[Tensor, "sources keys"] | None,
        *,
        keep: bool,
        limit: int | None = None,
        capacity: int = 64,
    ):
        super().__init__(0)
        pattern = AttentionPattern(mask=None if present is None else present[:, None, None, :])
        self.layers = [CrossLayerCache(source, pattern, keep, limit, capacity) for _ in range(layers)]

    def select(self, rows: Int[Tensor, " rows"], sources: Int[Tensor, " kept"] | None = None) -> None:
        """Let each row continue the old row that it names: what a beam search does at each step.

        Args:
            rows: for each new row, the number of the old one. Rows of one source stand together.
            sources: the numbers of the sources that remain, in order; all where None.
        """
        for layer in self.layers:
            layer.select(rows, sources)
        if self.present is not None:
            self.present = self.present.index_select(0, rows)


class CrossBlock(Block):
    """Self-attention, attention to the source, then feed-forward (Vaswani et al. 2017, section 3.1, the decoder).

    Args:
        attention: an `Attention` in `PreNorm` or `PostNorm`.
        cross_attention: another one, whose keys and values come from the source.
        feed_forward: a feed-forward layer in the same.
    """

    def __init__(self, attention: nn.Module, cross_attention: nn.Module, feed_forward: nn.Module):
        super().__init__(attention, feed_forward)
        self.cross_attention = cross_attention

    def forward(
        self,
        hidden: Float[Tensor, "batch length width"],
        pattern: AttentionPattern | None = None,
        *,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Pass the tokens through the three sublayers.

        Raises:
            ValueError: a cache that holds no source.
        """
        if not isinstance(cache, CrossLayerCache):
            raise ValueError("a block with attention to a source was given none: call it through an EncoderDecoder")
        hidden = self.attention(hidden, pattern, cache=cache)
        # The rows of one source look at it together, as if they were one longer sequence.
        together = hidden.reshape(len(cache.source), -1, hidden.shape[-1])
        together = self.cross_attention(together, cache.pattern, source=cache.new_source(), cache=cache.of_source)
        return self._position_wise(together.reshape(hidden.shape), pattern)


class EncoderDecoder(nn.Module):
    """A model of a target sequence given a source: p(y₁ … yₘ | x) = Π p(yₜ | y₁ … yₜ₋₁, x).

    Args:
        encoder: maps source and, by the keyword `present`, its padding to a vector for each source token: an `Encoder`,
            or another module whose last axis is as wide as the decoder.
        decoder: of `CrossBlock`s.
        shared: whether source and target have one embedding table, which is then also the output projection where
            the decoder is tied (Vaswani et al. 2017, section 3.4).

    Raises:
        ValueError: `shared`, and the two embedding tables differ in shape.
    """

    def __init__(self, encoder: nn.Module, decoder: Decoder, *, shared: bool = False):
        super().__init__()
        if shared:
            table = getattr(encoder, "embedding", None)
            ours = tuple(decoder.embedding.weight.shape)
            if not isinstance(table, nn.Embedding) or tuple(table.weight.shape) != ours:
                theirs = tuple(table.weight.shape) if isinstance(table, nn.Embedding) else "no table"
                raise ValueError(
                    f"the encoder's embedding cannot be shared: it is {theirs} (vocabulary, width), the decoder's is "
                    f"{ours}; they must be equal, which one vocabulary over both languages gives"
                )
            decoder.embedding = table
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
        target_present: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each target token; arguments as in `hidden`."""
        return self.decoder.logits(self.hidden(source, target, present=present, target_present=target_present))

    def hidden(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
        target_present: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Give each target token's vector after the last block and norm.

        Args:
            source: what is to be translated.
            target: what it becomes, from the token that begins every target.
            present: False where a source token is padding; all tokens are present where None.
            target_present: False where a target token is padding. On the right it needs no mark, since no token looks
                at what follows it, except for layers in which tokens are counted (mixtures of experts).

        Raises:
            ValueError: a source or a target without tokens, or what a position scheme refuses.
        """
        encoded = self._encode(source, present)
        cache = CrossCache(len(self.decoder.blocks), encoded, present, keep=False)
        return self.decoder.hidden(target, present=target_present, cache=cache)

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection, from a target token's vector to logits."""
        return self.decoder.output_weight

    def start(
        self,
        source: Int[Tensor, "batch source_length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
        limit: int | None = None,
    ) -> CrossCache:
        """Encode sources and give the state from which `next_logits` goes on, a row for each source.

        Args:
            source: what is to be translated.
            present: False where a source token is padding.
            limit: the most target tokens that will follow; no limit where None.

        Raises:
            ValueError: as `hidden`.
        """
        capacity = 64 if limit is None else min(limit, 64)
        encoded = self._encode(source, present)
        return CrossCache(len(self.decoder.blocks), encoded, present, keep=True, limit=limit, capacity=capacity)

    def next_logits(self, tokens: Int[Tensor, " rows"], state: CrossCache) -> Float[Tensor, "rows vocabulary"]:
        """Take in a target token of each row, and give the logits of the one that follows it."""
        return self.decoder(tokens[:, None], cache=state)[:, 0]

    def _encode(self, source: Tensor, present: Tensor | None) -> Any:
        check_sources(source, present)
        return self.encoder(source, present=present)


def check_sources(source: Tensor, present: Bool[Tensor, "batch source_length"] | None) -> None:
    """Refuse a source without tokens: a softmax over nothing is not a number.

    Raises:
        ValueError: there is one; the message names its row.
    """
    if source.shape[1] == 0:
        raise ValueError("the sources are empty: each needs at least one token")
    if present is not None and not bool((there := present.any(1)).all()):
        row = int((~there).nonzero()[0])
        raise ValueError(f"source {row} is empty: all its {source.shape[1]} tokens are padding, and it needs one")
