"""LLaMA: a pre-norm decoder with RMSNorm, SwiGLU and rotary positions, and no biases anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn as torch_nn

from allyouneed.hub import Name, Pretrained, required, same
from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    GatedFeedForward,
    PreNorm,
    RMSNorm,
    RotaryPositions,
    RotaryScaling,
)

from .checkpoints import describe_numbers, layer_weight_names, read_numbers, refuse_windows


def swiglu_hidden(width: int, multiple: int = 256) -> int:
    """Give the inner width of the feed-forward layers: 2/3 · 4 · width, rounded up to a multiple.

    SwiGLU has three matrices where two are usual; at two thirds of the usual 4 · width they weigh the same.
    Source: Touvron et al. 2023, section 2.2. The released models round up to a multiple of 256, of which the paper
    says nothing.

    Raises:
        ValueError: a width or a multiple below 1.
    """
    if width < 1 or multiple < 1:
        raise ValueError(f"width {width} and multiple {multiple} must be at least 1")
    return -(-8 * width // (3 * multiple)) * multiple


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers that tell one model of the family from another.

    Attributes:
        vocabulary: tokens that there are; 32,000 in LLaMA.
        width: of the residual stream.
        layers: number of blocks.
        heads: number of query heads; divides the width.
        hidden: inner width of the feed-forward layers.
        key_value_heads: heads of keys and values; as many as queries have where None, and so in LLaMA. Fewer in some
            of its relatives (Ainslie et al. 2023).
        rotary_base: the slowest pair of coordinates turns by about 1/base radian a token.
        epsilon: of the norms.
        context: the most tokens that the model was trained to read, as far as its scaling does not stretch them; longer
            input is refused.
        tied: whether the output projection is the embedding table; not in LLaMA, but in smaller relatives.
        initial_deviation: standard deviation of the initial weights. The paper does not say; 0.02 is what GPT-2 began
            with, and the default of `transformers`.
        head_width: of each head; an even share of the width where None, and so in LLaMA.
        scaling: stretches rotary positions beyond the length that the model was first trained with; not in LLaMA.
        attention_bias: whether the projections of attention have biases; not in LLaMA.
        feed_forward_bias: whether those of the feed-forward layers have.

    Raises:
        ValueError: a number out of range.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    key_value_heads: int | None = None
    rotary_base: float = 10_000.0
    epsilon: float = 1e-6
    context: int = 2048
    tied: bool = False
    initial_deviation: float = 0.02
    head_width: int | None = None
    scaling: RotaryScaling = field(default_factory=RotaryScaling)
    attention_bias: bool = False
    feed_forward_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "hidden", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("rotary_base", "initial_deviation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")


def _of_table_2(width: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(32_000, width, layers, heads, swiglu_hidden(width))


SIZES: Mapping[str, LlamaConfig] = {
    "7B": _of_table_2(4096, 32, 32),
    "13B": _of_table_2(5120, 40, 40),
    "33B": _of_table_2(6656, 60, 52),
    "65B": _of_table_2(8192, 80, 64),
}
"""Table 2: dimension, heads and layers. What it does not say (vocabulary, context, ε) is that of the released 7B."""


def llama_attention(config: LlamaConfig, **changes: Any) -> Attention:
    """Compose the attention layer; `changes` are arguments of `Attention` in which a relative differs."""
    usual: dict[str, Any] = {
        "key_value_heads": config.key_value_heads,
        "head_width": config.head_width,
        "bias": config.attention_bias,
    }
    return Attention(config.width, config.heads, **{**usual, **changes})


def llama_block(config: LlamaConfig, attention: Attention | None = None) -> Block:
    """Compose one layer (section 2.2): x + attention(norm(x)), then x + feed-forward(norm(x)).

    Args:
        config: the model's numbers.
        attention: another attention layer than LLaMA's.
    """
    feed_forward = GatedFeedForward(config.width, config.hidden, bias=config.feed_forward_bias)
    return Block(
        PreNorm(attention or llama_attention(config), RMSNorm(config.width, config.epsilon)),
        PreNorm(feed_forward, RMSNorm(config.width, config.epsilon)),
    )


class Llama(Pretrained, Decoder):
    """The model, with new weights; `from_pretrained` gives it those of a checkpoint.

    A relative with another attention layer derives from it and overrides `attention`.

    Source: Touvron et al. 2023, section 2.2.

    Args:
        config: its numbers.

    Attributes:
        defaults: what the architecture takes where a `config.json` says nothing.

    Raises:
        ValueError: heads that do not divide evenly, or heads of an odd width, which cannot be turned in pairs.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "LlamaModel", "llama")
    prefix: ClassVar[str] = "model."
    ignored: ClassVar[tuple[str, ...]] = (r".*\.rotary_emb\.inv_freq",)
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048}

    def __init__(self, config: LlamaConfig):
        head_width = config.head_width or config.width // config.heads
        super().__init__(
            config.vocabulary,
            config.width,
            [llama_block(config, self.attention(config, layer)) for layer in range(config.layers)],
            positions=RotaryPositions(head_width, config.rotary_base, scaling=config.scaling),
            norm=RMSNorm(config.width, config.epsilon),
            tied=config.tied,
            context=config.scaling.longest(config.context),
        )
        self.config = config
        for module in self.modules():
            if isinstance(module, (torch_nn.Linear, torch_nn.Embedding)):
                torch_nn.init.normal_(module.weight, std=config.initial_deviation)

    @classmethod
    def attention(cls, config: LlamaConfig, layer: int) -> Attention:
        """Compose the attention layer of one block."""
        return llama_attention(config)

    @classmethod
    def read_config(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read the numbers of a `config.json`, as any version of `transformers` writes it.

        Raises:
            UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
            ValueError: numbers out of range.
        """
        refuse_windows(config)
        return LlamaConfig(
            **read_numbers(config),
            attention_bias=required(config, "attention_bias", bool, False),
            feed_forward_bias=required(config, "mlp_bias", bool, False),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Llama":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
            ValueError: numbers that do not fit together.
        """
        return cls(cls.read_config({**cls.defaults, **config}))

    def to_config(self) -> dict[str, Any]:
        """Describe the model in the keys of a `config.json`."""
        return {
            "architectures": [self.architectures[0]],
            "model_type": self.model_types[0],
            **describe_numbers(self.config),
            "attention_bias": self.config.attention_bias,
            "mlp_bias": self.config.feed_forward_bias,
        }

    def copies(self) -> Mapping[str, str]:
        """Say that checkpoints with tied weights may hold them twice."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.tied else {}

    def weight_names(self) -> Sequence[Name]:
        """Say how checkpoints call each weight."""
        names = [same("embedding.weight", "model.embed_tokens.weight"), same("norm.weight", "model.norm.weight")]
        if not self.config.tied:
            names.append(same("head.weight", "lm_head.weight"))
        # Of a new block, since a quantised one has lost its weights' names.
        with torch.device("meta"):
            block = llama_block(self.config, self.attention(self.config, 0))
        return [*names, *layer_weight_names([name for name, _ in block.named_parameters()], self.config.layers)]
