"""Mixtral: LLaMA's decoder with a mixture of eight gated experts in each layer, of which each token uses two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn as torch_nn

from allyouneed.hub import (
    Name,
    Pretrained,
    UnsupportedError,
    canonical,
    read_key_value_heads,
    read_rotary,
    refuse_unless,
    required,
    same,
)
from allyouneed.nn import Attention, Block, Decoder, GatedExperts, PreNorm, RMSNorm, RotaryPositions
from allyouneed.papers.moe import check_choices

from .routing import SparseFeedForward, TopKRouter


@dataclass(frozen=True)
class MixtralConfig:
    """The numbers that tell one model of the family from another; defaults are those of Mixtral 8x7B.

    Attributes:
        vocabulary: tokens that there are.
        width: of the residual stream.
        layers: number of blocks.
        heads: number of query heads; divides the width.
        hidden: inner width of an expert.
        key_value_heads: heads of keys and values.
        experts: in each layer.
        k: that each token goes to.
        rotary_base: the slowest pair of coordinates turns by about 1/base radian a token.
        epsilon: of the norms.
        context: the most tokens that the model was trained to read; longer input is refused.
        tied: whether the output projection is the embedding table.
        initial_deviation: standard deviation of the initial weights.

    Raises:
        ValueError: a number out of range, or more experts for a token than there are.
    """

    vocabulary: int = 32_000
    width: int = 4096
    layers: int = 32
    heads: int = 32
    hidden: int = 14_336
    key_value_heads: int = 8
    experts: int = 8
    k: int = 2
    rotary_base: float = 1e6
    epsilon: float = 1e-5
    context: int = 32_768
    tied: bool = False
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "hidden", "key_value_heads", "experts", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("rotary_base", "initial_deviation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        check_choices(self.k, self.experts)


def mixtral_block(config: MixtralConfig) -> Block:
    """Compose one layer: grouped attention, then the mixture, each behind an RMS norm and without biases."""
    attention = Attention(config.width, config.heads, key_value_heads=config.key_value_heads, bias=False)
    # Of a single expert the weight is 1 either way.
    router = TopKRouter(config.width, config.experts, config.k, normalised=config.k > 1)
    mixture = SparseFeedForward(router, GatedExperts(config.experts, config.width, config.hidden))
    return Block(
        PreNorm(attention, RMSNorm(config.width, config.epsilon)),
        PreNorm(mixture, RMSNorm(config.width, config.epsilon)),
    )


class Mixtral(Pretrained, Decoder):
    """The model, with new weights; `from_pretrained` gives it those of a checkpoint.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide evenly, or heads of an odd width, which cannot be turned in pairs.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mixtral",)
    architectures: ClassVar[tuple[str, ...]] = ("MixtralForCausalLM", "MixtralModel")
    prefix: ClassVar[str] = "model."
    ignored: ClassVar[tuple[str, ...]] = (r".*\.rotary_emb\.inv_freq",)

    def __init__(self, config: MixtralConfig):
        super().__init__(
            config.vocabulary,
            config.width,
            [mixtral_block(config) for _ in range(config.layers)],
            positions=RotaryPositions(config.width // config.heads, config.rotary_base),
            norm=RMSNorm(config.width, config.epsilon),
            tied=config.tied,
            context=config.context,
        )
        self.config = config
        for module in self.modules():
            if isinstance(module, (torch_nn.Linear, torch_nn.Embedding, TopKRouter)):
                torch_nn.init.normal_(module.weight, std=config.initial_deviation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Mixtral":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
            ValueError: numbers out of range.
        """
        config = canonical(config, {"num_experts": "num_local_experts"})
        width, heads = required(config, "hidden_size", int), required(config, "num_attention_heads", int)
        if heads < 1 or width % heads:
            raise UnsupportedError(f"config.json: hidden_size {width} cannot be divided by {heads} num_attention_heads")
        refuse_unless(config, "hidden_act", ("silu", "swish"), absent="silu")
        refuse_unless(config, "head_dim", (width // heads, None))
        refuse_unless(config, "attention_dropout", (0.0, 0, None))
        refuse_unless(config, "router_jitter_noise", (0.0, 0, None))
        refuse_unless(config, "sliding_window", (None,))
        rotary = read_rotary(config, base=1e6, context=131_072)
        rotary.refuse_unless()
        # Where it is null there are as many as queries have; where it is absent, eight.
        key_value_heads = heads if "num_key_value_heads" in config else 8
        experts, k = required(config, "num_local_experts", int, 8), required(config, "num_experts_per_tok", int, 2)
        if k == 1 and experts > 1:
            raise UnsupportedError(
                "config.json: num_experts_per_tok is 1: a router of normalised weights needs 2 or more"
            )
        return cls(
            MixtralConfig(
                vocabulary=required(config, "vocab_size", int),
                width=width,
                layers=required(config, "num_hidden_layers", int),
                heads=heads,
                hidden=required(config, "intermediate_size", int),
                key_value_heads=read_key_value_heads(config, heads, key_value_heads),
                experts=experts,
                k=k,
                rotary_base=rotary.base,
                epsilon=required(config, "rms_norm_eps", float, 1e-5),
                context=required(config, "max_position_embeddings", int, 131_072),
                tied=required(config, "tie_word_embeddings", bool, False),
                initial_deviation=required(config, "initializer_range", float, 0.02),
            )
        )

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model, for `transformers` of version 5 too."""
        config = self.config
        return {
            "architectures": [self.architectures[0]],
            "model_type": "mixtral",
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "intermediate_size": config.hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.k,
            "hidden_act": "silu",
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.epsilon,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
            "rope_theta": config.rotary_base,
            "sliding_window": None,
            "tie_word_embeddings": config.tied,
            "initializer_range": config.initial_deviation,
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
            ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
            names += [same(f"{ours}.{one}.weight", f"{theirs}.{other}.weight") for one, other in _LAYER_NAMES.items()]
            names += [
                same(
                    f"{ours}.feed_forward.sublayer.experts.{part}.{expert}.weight",
                    f"{theirs}.block_sparse_moe.experts.{expert}.{matrix}.weight",
                )
                for expert in range(self.config.experts)
                for part, matrix in (("gate", "w1"), ("output", "w2"), ("inner", "w3"))
            ]
        return names


_LAYER_NAMES = {
    "attention.norm": "input_layernorm",
    "attention.sublayer.query": "self_attn.q_proj",
    "attention.sublayer.key": "self_attn.k_proj",
    "attention.sublayer.value": "self_attn.v_proj",
    "attention.sublayer.output": "self_attn.o_proj",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.sublayer.router": "block_sparse_moe.gate",
}
