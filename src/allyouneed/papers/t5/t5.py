"""T5: an encoder–decoder with norms that only rescale, no biases, unscaled attention and relative positions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from allyouneed.hub import Name, Pretrained, StoredModel, same
from allyouneed.nn import (
    ACTIVATIONS,
    Attention,
    Block,
    CrossBlock,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    GatedFeedForward,
    PreNorm,
    RMSNorm,
    fused_attention,
)
from allyouneed.text import Tokenizer

from .config import KEYS, T5Config, read_config
from .positions import RelativePositions
from .sentencepieces import MODEL_FILE, SentencePieceTokenizer


def unscaled_attention(
    query: Float[Tensor, "batch heads queries head_width"],
    key: Float[Tensor, "batch heads keys head_width"],
    value: Float[Tensor, "batch heads keys head_width"],
    **options: Any,
) -> Float[Tensor, "batch heads queries head_width"]:
    """Compute attention without the factor 1/√head_width: initial queries are that much smaller instead."""
    return fused_attention(query * query.shape[-1] ** 0.5, key, value, **options)


class Scaled(nn.Module):
    """Multiply by a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Scale the vectors."""
        return hidden * self.factor

    def extra_repr(self) -> str:
        """Give the factor."""
        return f"{self.factor:.4g}"


class Activation(nn.Module):
    """Apply an activation, by its name in `nn.ACTIVATIONS`."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Apply it to each coordinate."""
        return ACTIVATIONS[self.name](hidden)

    def extra_repr(self) -> str:
        """Give the name."""
        return self.name


def attention(config: T5Config) -> PreNorm:
    """Compose attention in its residual branch: rescaled input, no biases, no factor."""
    sublayer = Attention(
        config.width,
        config.heads,
        head_width=config.head_width,
        bias=False,
        dropout=config.dropout,
        kernel=unscaled_attention,
    )
    return PreNorm(sublayer, RMSNorm(config.width, config.epsilon), config.dropout)


def feed_forward(config: T5Config) -> PreNorm:
    """Compose the feed-forward layer in its residual branch; dropout is applied to the inner vector too."""
    # Dropping coordinates of the gate is dropping those of its product with the other half.
    dropped = nn.Sequential(Activation(config.activation_name), nn.Dropout(config.dropout))
    layer = GatedFeedForward if config.gated else FeedForward
    sublayer = layer(config.width, config.hidden, activation=dropped, bias=False)
    return PreNorm(sublayer, RMSNorm(config.width, config.epsilon), config.dropout)


def encoder(config: T5Config, blocks: Sequence[Block] | None = None) -> Encoder:
    """Compose the encoder, of new blocks where none are given."""
    return Encoder(
        config.vocabulary,
        config.width,
        blocks or [Block(attention(config), feed_forward(config)) for _ in range(config.layers)],
        positions=positions(config, bidirectional=True),
        norm=nn.Sequential(RMSNorm(config.width, config.epsilon), nn.Dropout(config.dropout)),
        dropout=config.dropout,
    )


def decoder(config: T5Config, blocks: Sequence[Block], *, bidirectional: bool = False) -> Decoder:
    """Compose a decoder of these blocks: of `CrossBlock`s beside an encoder, of `Block`s alone.

    Args:
        config: the numbers.
        blocks: the layers.
        bidirectional: whether some tokens look ahead, as those of a prefix do.
    """
    last = [RMSNorm(config.width, config.epsilon), nn.Dropout(config.dropout)]
    return Decoder(
        config.vocabulary,
        config.width,
        blocks,
        positions=positions(config, bidirectional=bidirectional),
        norm=nn.Sequential(*last, Scaled(config.width**-0.5)) if config.scales_output else nn.Sequential(*last),
        tied=config.tied,
        dropout=config.dropout,
    )


def positions(config: T5Config, *, bidirectional: bool) -> RelativePositions:
    """Make the biases of one stack, which all of its layers share."""
    return RelativePositions(
        config.heads, bidirectional=bidirectional, buckets=config.buckets, furthest=config.furthest
    )


_ENCODER_LAYERS = {"attention": "SelfAttention", "feed_forward": "DenseReluDense"}
_DECODER_LAYERS = {
    "attention": "SelfAttention",
    "cross_attention": "EncDecAttention",
    "feed_forward": "DenseReluDense",
}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_PLAIN = {"inner": "wi", "output": "wo"}
_GATED = {"gate": "wi_0", "inner": "wi_1", "output": "wo"}


class T5(Pretrained, EncoderDecoder):
    """The model of section 2.1, version 1.0, or 1.1 where the configuration says so; with new weights.

    Reads and writes the checkpoints of Hugging Face transformers.

    Args:
        config: its numbers.
    """

    model_types: ClassVar[tuple[str, ...]] = ("t5",)
    architectures: ClassVar[tuple[str, ...]] = ("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model")
    # Early checkpoints have a table of biases in cross-attention, which nothing reads.
    ignored: ClassVar[tuple[str, ...]] = (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    )

    def __init__(self, config: T5Config):
        count = config.layers if config.decoder_layers is None else config.decoder_layers
        blocks = [CrossBlock(attention(config), attention(config), feed_forward(config)) for _ in range(count)]
        super().__init__(encoder(config), decoder(config, blocks), shared=True)
        self.config = config
        initialise(self, config.deviation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "T5":
        """Build the model that a `config.json` of transformers describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        return cls(read_config(config))

    @classmethod
    def for_stored(cls, stored: StoredModel) -> "T5":
        """Build the model that a checkpoint holds; one that lacks an output layer has the embedding table for it."""
        config = read_config(stored.config)
        if not config.tied and not any(name.endswith("lm_head.weight") for name in stored.names()):
            config = replace(config, tied=True, scaled=False)
        return cls(config)

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` by which transformers builds the same model."""
        config = self.config
        sizes = {key: getattr(config, field) for field, key in KEYS.items()}
        return {
            "architectures": [self.architectures[0]],
            "model_type": "t5",
            **sizes,
            **({} if config.activation is None else {"dense_act_fn": config.activation}),
            "num_decoder_layers": len(self.decoder.blocks),
            "tie_word_embeddings": config.tied,
            **({} if config.scaled is None else {"scale_decoder_outputs": config.scaled}),
            "decoder_start_token_id": config.padding,
            "is_encoder_decoder": True,
        }

    def copies(self) -> Mapping[str, str]:
        """Give the names under which checkpoints hold the table of embeddings again."""
        names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
        return dict.fromkeys([*names, "lm_head.weight"] if self.config.tied else names, "shared.weight")

    def weight_names(self) -> Sequence[Name]:
        """Name every parameter as published checkpoints do."""
        names = [same("decoder.embedding.weight", "shared.weight")]
        if not self.config.tied:
            names.append(same("decoder.head.weight", "lm_head.weight"))
        for stack, own in (("encoder", self.encoder), ("decoder", self.decoder)):
            table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
            names.append(same(f"{stack}.positions.table.weight", f"{table}.weight"))
            names.append(same(f"{stack}.norm.0.weight", f"{stack}.final_layer_norm.weight"))
            parts = _DECODER_LAYERS if stack == "decoder" else _ENCODER_LAYERS
            for index in range(len(own.blocks)):  # pyright: ignore[reportArgumentType]
                for place, (part, theirs) in enumerate(parts.items()):
                    ours, layer = f"{stack}.blocks.{index}.{part}", f"{stack}.block.{index}.layer.{place}"
                    projections = _ATTENTION if part.endswith("attention") else _GATED if self.config.gated else _PLAIN
                    names.append(same(f"{ours}.norm.weight", f"{layer}.layer_norm.weight"))
                    names += [
                        same(f"{ours}.sublayer.{one}.weight", f"{layer}.{theirs}.{other}.weight")
                        for one, other in projections.items()
                    ]
        return names

    @classmethod
    def read_tokenizer(cls, stored: StoredModel) -> Tokenizer:
        """Make the tokenizer of an opened checkpoint: that of its `spiece.model`, or else of its `tokenizer.json`."""
        folder = Path(stored.source)
        if (folder / MODEL_FILE).is_file():
            return SentencePieceTokenizer.load(folder)
        return super().read_tokenizer(stored)


def initialise(model: nn.Module, factor: float = 1.0) -> None:
    """Draw initial weights as the released code does; the paper says nothing of them.

    Embeddings have the deviation 1, projections 1/√(number of inputs), queries a further 1/√head_width, which makes up
    for the factor that the scores lack. An output projection of its own starts with 1/√width, so that logits begin
    as small as those of version 1.0. All of them are multiplied by the factor, and so are the scales of the norms.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=factor * module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=factor)
        elif isinstance(module, RMSNorm):
            nn.init.constant_(module.weight, factor)
    for module in model.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.query.weight, std=factor * (module.query.in_features * module.head_width) ** -0.5)
        elif isinstance(module, (Encoder, Decoder)) and isinstance(module.positions, RelativePositions):
            nn.init.normal_(module.positions.table.weight, std=factor * module.embedding.embedding_dim**-0.5)
