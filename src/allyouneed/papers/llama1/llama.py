"""LLaMA: a pre-norm decoder with RMSNorm, SwiGLU and rotary positions, and no biases anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn as torch_nn

from allyouneed.hub import Name, Pretrained, UnsupportedError, read_rotary, refuse_unless, required, same
from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    GatedFeedForward,
    PreNorm,
    RMSNorm,
    RotaryPositions,
)


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
        context: the most tokens that the model was trained to read; longer input is refused.
        tied: whether the output map is the embedding table; not in LLaMA, but in smaller relatives.
        initial_deviation: standard deviation of the initial weights. The paper does not say; 0.02 is what GPT-2 began
            with, and the default of `transformers`.

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


def llama_block(config: LlamaConfig) -> Block:
    """Compose one layer (section 2.2): x + attention(norm(x)), then x + feed-forward(norm(x)), both without biases."""
    attention = Attention(config.width, config.heads, key_value_heads=config.key_value_heads, bias=False)
    feed_forward = GatedFeedForward(config.width, config.hidden)
    return Block(
        PreNorm(attention, RMSNorm(config.width, config.epsilon)),
        PreNorm(feed_forward, RMSNorm(config.width, config.epsilon)),
    )


class Llama(Pretrained, Decoder):
    """The model, with new weights; `from_pretrained` gives it those of a checkpoint.

    Source: Touvron et al. 2023, section 2.2.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide evenly, or heads of an odd width, which cannot be turned in pairs.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral")
    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "llama", "MistralForCausalLM", "mistral")
    ignored: ClassVar[tuple[str, ...]] = (r".*\.rotary_emb\.inv_freq",)

    def __init__(self, config: LlamaConfig):
        super().__init__(
            config.vocabulary,
            config.width,
            [llama_block(config) for _ in range(config.layers)],
            positions=RotaryPositions(config.width // config.heads, config.rotary_base),
            norm=RMSNorm(config.width, config.epsilon),
            tied=config.tied,
            context=config.context,
        )
        self.config = config
        for module in self.modules():
            if isinstance(module, (torch_nn.Linear, torch_nn.Embedding)):
                torch_nn.init.normal_(module.weight, std=config.initial_deviation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Llama":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
            ValueError: numbers that do not fit together.
        """
        return cls(read_config(config))

    def to_config(self) -> dict[str, Any]:
        """Describe the model in the keys of a `config.json`."""
        config = self.config
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads or config.heads,
            "intermediate_size": config.hidden,
            "hidden_act": "silu",
            "rope_theta": config.rotary_base,
            "rms_norm_eps": config.epsilon,
            "max_position_embeddings": config.context,
            "tie_word_embeddings": config.tied,
            "initializer_range": config.initial_deviation,
            "attention_bias": False,
            "mlp_bias": False,
        }

    def copies(self) -> Mapping[str, str]:
        """Say that checkpoints with tied weights may hold them twice."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.tied else {}

    def weight_names(self) -> Sequence[Name]:
        """Say how checkpoints call each weight."""
        names = [same("embedding.weight", "model.embed_tokens.weight"), same("norm.weight", "model.norm.weight")]
        if not self.config.tied:
            names.append(same("head.weight", "lm_head.weight"))
        for layer in range(self.config.layers):
            for ours, theirs in _LAYER_NAMES.items():
                names.append(same(f"blocks.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight"))
        return names


_LAYER_NAMES = {
    "attention.norm": "input_layernorm",
    "attention.sublayer.query": "self_attn.q_proj",
    "attention.sublayer.key": "self_attn.k_proj",
    "attention.sublayer.value": "self_attn.v_proj",
    "attention.sublayer.output": "self_attn.o_proj",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.sublayer.gate": "mlp.gate_proj",
    "feed_forward.sublayer.inner": "mlp.up_proj",
    "feed_forward.sublayer.output": "mlp.down_proj",
}


def read_config(config: Mapping[str, Any]) -> LlamaConfig:
    """Read the numbers of a `config.json`, as any version of `transformers` writes it.

    Raises:
        UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
        ValueError: numbers out of range.
    """
    width, heads = required(config, "hidden_size", int), required(config, "num_attention_heads", int)
    if heads < 1 or width % heads:
        raise UnsupportedError(f"config.json: hidden_size {width} cannot be divided among {heads} num_attention_heads")
    refuse_unless(config, "hidden_act", ("silu", "swish"), absent="silu")
    refuse_unless(config, "head_dim", (width // heads, None))
    for key in ("attention_bias", "mlp_bias", "rope_interleaved"):
        refuse_unless(config, key, (False, None))
    refuse_unless(config, "attention_dropout", (0.0, 0, None))
    refuse_unless(config, "quantization_config", (None,))
    # Where a Mistral says nothing of its window, it has one.
    refuse_unless(config, "sliding_window", (None,), absent=4096 if config.get("model_type") == "mistral" else None)
    rotary = read_rotary(config, context=2048)
    rotary.refuse_unless()
    shared = required(config, "num_key_value_heads", int, heads)
    return LlamaConfig(
        vocabulary=required(config, "vocab_size", int),
        width=width,
        layers=required(config, "num_hidden_layers", int),
        heads=heads,
        hidden=required(config, "intermediate_size", int),
        key_value_heads=None if shared == heads else shared,
        rotary_base=rotary.base,
        epsilon=required(config, "rms_norm_eps", float, 1e-6),
        context=required(config, "max_position_embeddings", int, 2048),
        tied=required(config, "tie_word_embeddings", bool, False),
        initial_deviation=required(config, "initializer_range", float, 0.02),
    )
