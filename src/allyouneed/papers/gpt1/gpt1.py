"""GPT: a post-norm decoder with learned positions, its initial weights, and its published checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

from torch import nn

from allyouneed.hub import Name, Pretrained, StoredModel, canonical, refuse_unless, required, same, stacked, transposed
from allyouneed.nn import ACTIVATIONS, Attention, Block, Decoder, FeedForward, LearnedPositions, PostNorm
from allyouneed.text import Tokenizer

from .byte_pairs import EndOfWordBPE

gelu = ACTIVATIONS["gelu_new"]
"""The approximation that the released code computes; the exact GELU differs from it by up to 5e-4."""

ACTIVATION_NAMES = {
    "gelu": gelu,
    "relu": ACTIVATIONS["relu"],
    "silu": ACTIVATIONS["silu"],
    "swish": ACTIVATIONS["silu"],
}
"""What `afn` may say: in this family "gelu" is the approximation."""


@dataclass(frozen=True)
class GPT1Config:
    """The numbers of a GPT; the defaults are the paper's (section 4.1).

    Attributes:
        vocabulary: number of tokens. 40,000 merges, the characters, and special tokens make the published 40,478.
        positions: the longest row, in tokens.
        width: of the residual stream. The feed-forward layers are four times as wide inside.
        layers: number of blocks.
        heads: number of attention heads.
        embedding_dropout: probability of dropping a coordinate of the sum of embeddings, in training.
        attention_dropout: of dropping an attention weight.
        residual_dropout: of dropping a coordinate of what a sublayer adds.
        epsilon: added to the variance in layer norms.
        deviation: standard deviation of the initial weights.
        activation: of the feed-forward layers, a name in `ACTIVATION_NAMES`.
    """

    vocabulary: int = 40_478
    positions: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    epsilon: float = 1e-5
    deviation: float = 0.02
    activation: str = "gelu"


_KEYS = {
    "vocabulary": "vocab_size",
    "positions": "n_positions",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "epsilon": "layer_norm_epsilon",
    "deviation": "initializer_range",
    "activation": "afn",
}
"""What the fields of `GPT1Config` are called in `config.json`."""
_ALIASES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


class GPT1(Pretrained, Decoder):
    """The language model of Radford et al. 2018, section 3.1 and 4.1.

    The decoder of Vaswani et al. without attention to an encoder: norms after the residual sums, none behind the last
    block; positions are learned, and the output projection is the embedding table. Reads and writes the checkpoints of
    Hugging Face transformers.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide the width, no tokens, or no layers.
    """

    model_types: ClassVar[tuple[str, ...]] = ("openai-gpt",)
    # The language model under a classifier can be read without it.
    architectures: ClassVar[tuple[str, ...]] = (
        "OpenAIGPTLMHeadModel",
        "OpenAIGPTModel",
        "OpenAIGPTForSequenceClassification",
    )
    prefix: ClassVar[str] = "transformer."
    # Causal masks and positions that early checkpoints hold as buffers, and the head.
    ignored: ClassVar[tuple[str, ...]] = (
        r"(transformer\.)?h\.\d+\.attn\.bias",
        r"(transformer\.)?position_ids",
        r"score\..*",
    )

    def __init__(self, config: GPT1Config):
        norm = partial(nn.LayerNorm, config.width, eps=config.epsilon)
        blocks = [
            Block(
                PostNorm(
                    Attention(config.width, config.heads, dropout=config.attention_dropout),
                    norm(),
                    config.residual_dropout,
                ),
                PostNorm(
                    FeedForward(config.width, activation=ACTIVATION_NAMES[config.activation]),
                    norm(),
                    config.residual_dropout,
                ),
            )
            for _ in range(config.layers)
        ]
        super().__init__(
            config.vocabulary,
            config.width,
            blocks,
            positions=LearnedPositions(config.positions, config.width),
            dropout=config.embedding_dropout,
        )
        self.config = config
        initialise(self, config.deviation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GPT1":
        """Build the model that a `config.json` of transformers describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        return cls(read_config(config))

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` by which transformers builds the same model."""
        return described(self.config, self.architectures[0])

    def weight_names(self) -> Sequence[Name]:
        """Name every parameter: linear layers are stored transposed, and those of query, key and value as one."""
        names = [
            same("embedding.weight", "transformer.tokens_embed.weight"),
            same("positions.table.weight", "transformer.positions_embed.weight"),
        ]
        for part, linear in (("weight", transposed), ("bias", same)):
            for index in range(self.config.layers):
                attention, feed_forward = f"blocks.{index}.attention", f"blocks.{index}.feed_forward"
                layer = f"transformer.h.{index}"
                projections = [f"{attention}.sublayer.{name}.{part}" for name in ("query", "key", "value")]
                names += [
                    stacked(projections, f"{layer}.attn.c_attn.{part}", transposed=part == "weight"),
                    linear(f"{attention}.sublayer.output.{part}", f"{layer}.attn.c_proj.{part}"),
                    same(f"{attention}.norm.{part}", f"{layer}.ln_1.{part}"),
                    linear(f"{feed_forward}.sublayer.inner.{part}", f"{layer}.mlp.c_fc.{part}"),
                    linear(f"{feed_forward}.sublayer.output.{part}", f"{layer}.mlp.c_proj.{part}"),
                    same(f"{feed_forward}.norm.{part}", f"{layer}.ln_2.{part}"),
                ]
        return names

    def copies(self) -> Mapping[str, str]:
        """Give the name under which some checkpoints hold the tied table again."""
        return {"lm_head.weight": "transformer.tokens_embed.weight"}

    @classmethod
    def read_tokenizer(cls, stored: StoredModel) -> Tokenizer:
        """Make the tokenizer of an opened checkpoint: that of its `tokenizer.json`, or of the two published files."""
        try:
            return super().read_tokenizer(stored)
        except FileNotFoundError:
            return stored.with_roles(EndOfWordBPE.load(stored.source))


def read_config(config: Mapping[str, Any]) -> GPT1Config:
    """Read the sizes in a `config.json` of transformers.

    Raises:
        UnsupportedError: a value that is missing, of another type, or not supported here, named.
    """
    refuse_unless(config, "model_type", ("openai-gpt",))
    refuse_unless(config, "afn", tuple(ACTIVATION_NAMES))
    refuse_unless(config, "tie_word_embeddings", (True,), absent=True)
    config = canonical(config, _ALIASES)
    values: dict[str, Any] = {}
    for field in fields(GPT1Config):
        default: Any = field.default
        values[field.name] = required(config, _KEYS[field.name], type(default), default)
    return GPT1Config(**values)


def described(config: GPT1Config, architecture: str) -> dict[str, Any]:
    """Give the `config.json` of a model of these sizes under a head of an architecture."""
    sizes = {key: getattr(config, field) for field, key in _KEYS.items()}
    return {"architectures": [architecture], "model_type": "openai-gpt", **sizes}


def initialise(model: nn.Module, deviation: float) -> None:
    """Draw matrices and embeddings from N(0, deviation²) and set biases to zero.

    Source: Radford et al. 2018, section 4.1.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
