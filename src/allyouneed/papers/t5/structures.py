"""The model structures of section 3.2.1 that stand beside the encoder–decoder, composed of the same parts."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.nn import Block, CrossBlock, Decoder, EncoderDecoder, KeyValueCache, LayerCache
from allyouneed.nn.encoder_decoder import check_sources

from .config import T5Config
from .t5 import T5, attention, decoder, encoder, feed_forward, initialise


class LanguageModel(nn.Module):
    """One stack for text-to-text tasks: it reads the source, then the target after it, as one sequence.

    It offers what `nn.EncoderDecoder` does, so that losses and beam search take either.

    Args:
        decoder: the stack.
        prefix: whether the tokens of a source see all of it, as in a prefix language model, or only what precedes them.
    """

    def __init__(self, decoder: Decoder, *, prefix: bool):
        super().__init__()
        self.decoder = decoder
        self.prefix = prefix

    def hidden(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Give each target token's vector after the last block and norm.

        Args:
            source: what is given.
            target: what is to be written, from the token that begins every target. Padding, on the right, needs no
                mark.
            present: False where a source token is padding, on the right.

        Raises:
            ValueError: a source or a target without tokens.
        """
        check_sources(source, present)
        if target.shape[1] == 0:
            raise ValueError("the targets are empty: each needs at least the token that begins it")
        length = source.shape[1]
        source, present = _moved_right(source, present)
        if present is not None:
            present = torch.cat((present, torch.ones_like(target, dtype=torch.bool)), 1)
        rows = torch.cat((source, target), 1)
        return self.decoder.hidden(rows, present=present, prefix=self._visible(length))[:, length:]

    def forward(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each target token; arguments as in `hidden`."""
        return self.decoder.logits(self.hidden(source, target, present=present))

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
    ) -> "DecodingCache":
        """Read sources and give the state from which `next_logits` goes on, a row for each source.

        Args:
            source: what is given.
            present: False where a source token is padding, on the right.
            limit: the most target tokens that will follow; no limit where None.

        Raises:
            ValueError: a source without tokens.
        """
        check_sources(source, present)
        length = source.shape[1]
        source, present = _moved_right(source, present)
        state = DecodingCache(len(self.decoder.blocks), None if limit is None else limit + length, length + 8)
        self.decoder.hidden(source, present=present, cache=state, prefix=self._visible(length))
        return state

    def next_logits(self, tokens: Int[Tensor, " rows"], state: "DecodingCache") -> Float[Tensor, "rows vocabulary"]:
        """Take in a target token of each row, and give the logits of the one that follows it."""
        return self.decoder(tokens[:, None], cache=state)[:, 0]

    def _visible(self, length: int) -> int:
        return length if self.prefix else 0


class DecodingCache(KeyValueCache):
    """Keys and values of source and target, in rows that can be chosen anew: the state of a decoding.

    Args:
        layers: number of blocks.
        limit: the most tokens that may be held, those of the source counted; no limit where None.
        capacity: tokens to make room for at the start.
    """

    def __init__(self, layers: int, limit: int | None = None, capacity: int = 64):
        super().__init__(0)
        self.layers = [_Layer(limit, capacity) for _ in range(layers)]

    def select(self, rows: Int[Tensor, " rows"], sources: Int[Tensor, " kept"] | None = None) -> None:
        """Let each row continue the old row that it names; which sources remain follows from that."""
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            layer.select(rows)
        if self.present is not None:
            self.present = self.present.index_select(0, rows)


class _Layer(LayerCache):
    def select(self, rows: Tensor) -> None:
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)


def encoder_decoder(config: T5Config) -> T5:
    """Compose the baseline: L layers on either side, 2P parameters, cost M."""
    return T5(config)


def shared_encoder_decoder(config: T5Config) -> EncoderDecoder:
    """Compose an encoder–decoder whose two stacks have the same layers: P parameters, cost M.

    Attention to the source is the decoder's own, and so are the position biases of each side.
    """
    crossing = [CrossBlock(attention(config), attention(config), feed_forward(config)) for _ in range(config.layers)]
    reading = [Block(block.attention, block.feed_forward) for block in crossing]
    model = EncoderDecoder(encoder(config, reading), decoder(config, crossing), shared=True)
    initialise(model)
    return model


def language_model(config: T5Config) -> LanguageModel:
    """Compose a language model of L layers, in which no token sees what follows it: P parameters, cost M."""
    return _single_stack(config, prefix=False)


def prefix_language_model(config: T5Config) -> LanguageModel:
    """Compose a language model of L layers that sees all of the source at once: P parameters, cost M."""
    return _single_stack(config, prefix=True)


STRUCTURES: dict[str, Callable[[T5Config], nn.Module]] = {
    "encoder-decoder": encoder_decoder,
    "shared": shared_encoder_decoder,
    "language model": language_model,
    "prefix language model": prefix_language_model,
}
"""The rows of Table 2 by name; its encoder–decoder of 6 layers is the first with half the layers."""


def training_flops(config: T5Config, structure: str, source: int, target: int, *, predicted: int | None = None) -> int:
    """Count the floating-point operations of training on one pair, forward and backward, in matrix products.

    Each weight takes 6 for each token that passes it; so does each coordinate of each query and key, in the scores and
    again in the mixtures, masked ones too, as they are computed. It is Table 2's count without its approximations:
    attention to the source, scores and the output projection are counted too.

    Args:
        config: the model's numbers.
        structure: a name in `STRUCTURES`.
        source: tokens of the input, its end among them.
        target: tokens of the target, that which begins it among them.
        predicted: tokens whose next token is asked for; all of the target where None.
    """
    heads = config.heads * config.head_width
    own = 4 * config.width * heads
    feed_forward = (3 if config.feed_forward.startswith("gated") else 2) * config.width * config.hidden
    output = config.width * config.vocabulary * (target if predicted is None else predicted)
    layers = config.layers
    if structure in ("language model", "prefix language model"):
        length = source + target
        return 6 * (layers * (length * (own + feed_forward) + 2 * heads * length**2) + output)
    deeper = layers if config.decoder_layers is None else config.decoder_layers
    encoding = layers * (source * (own + feed_forward) + 2 * heads * source**2)
    crossing = 2 * config.width * heads * (source + target) + 2 * heads * source * target
    decoding = deeper * (target * (own + feed_forward) + 2 * heads * target**2 + crossing)
    return 6 * (encoding + decoding + output)


def _single_stack(config: T5Config, *, prefix: bool) -> LanguageModel:
    blocks = [Block(attention(config), feed_forward(config)) for _ in range(config.layers)]
    model = LanguageModel(decoder(config, blocks, bidirectional=prefix), prefix=prefix)
    initialise(model)
    return model


def _moved_right(source: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Put padding before each source, so that its target follows at once."""
    if present is None:
        return source, None
    missing = source.shape[1] - present.sum(1, keepdim=True)
    places = (torch.arange(source.shape[1], device=source.device) - missing) % source.shape[1]
    return source.gather(1, places), present.gather(1, places)
