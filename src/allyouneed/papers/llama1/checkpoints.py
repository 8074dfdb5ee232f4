"""How published checkpoints of LLaMA and its relatives state their numbers and name their weights."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from allyouneed.hub import (
    Name,
    UnsupportedError,
    read_key_value_heads,
    read_rotary,
    refuse_unless,
    required,
    rotary_scaling,
    same,
    scaling_entry,
)

FULL, SLIDING = "full_attention", "sliding_attention"

_LAYER = {
    "attention.norm": "input_layernorm",
    "attention.sublayer.query": "self_attn.q_proj",
    "attention.sublayer.query_norm": "self_attn.q_norm",
    "attention.sublayer.key": "self_attn.k_proj",
    "attention.sublayer.key_norm": "self_attn.k_norm",
    "attention.sublayer.value": "self_attn.v_proj",
    "attention.sublayer.output": "self_attn.o_proj",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.sublayer.gate": "mlp.gate_proj",
    "feed_forward.sublayer.inner": "mlp.up_proj",
    "feed_forward.sublayer.output": "mlp.down_proj",
}


def read_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read from a `config.json` what all of the family have, under the names of `LlamaConfig`'s attributes.

    Raises:
        UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
    """
    width, heads = required(config, "hidden_size", int), required(config, "num_attention_heads", int)
    head_width = required(config, "head_dim", int, 0)
    if heads < 1 or (not head_width and width % heads):
        raise UnsupportedError(
            f"config.json: hidden_size {width} cannot be divided among {heads} num_attention_heads, and no head_dim "
            "is given"
        )
    if (head_width or width // heads) % 2:
        raise UnsupportedError(
            f"config.json: head_dim is {head_width or width // heads}; rotary positions need an even number"
        )
    refuse_unless(config, "hidden_act", ("silu", "swish"), absent="silu")
    refuse_unless(config, "rope_interleaved", (False, None))
    refuse_unless(config, "attention_dropout", (0.0, 0, None))
    refuse_unless(config, "quantization_config", (None,))
    context = required(config, "max_position_embeddings", int)
    rotary = read_rotary(config, context=context)
    # Any kind of scaling, but of whole heads.
    rotary.refuse_unless((rotary.kind,))
    shared = read_key_value_heads(config, heads, heads)
    return {
        "vocabulary": required(config, "vocab_size", int),
        "width": width,
        "layers": required(config, "num_hidden_layers", int),
        "heads": heads,
        "hidden": required(config, "intermediate_size", int),
        "key_value_heads": None if shared == heads else shared,
        "head_width": None if head_width * heads in (0, width) else head_width,
        "rotary_base": rotary.base,
        "scaling": rotary_scaling(rotary, context),
        "epsilon": required(config, "rms_norm_eps", float, 1e-6),
        "context": context,
        "tied": required(config, "tie_word_embeddings", bool, False),
        "initial_deviation": required(config, "initializer_range", float, 0.02),
    }


def read_layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """Read which layers have a sliding window, where a `config.json` lists them one by one.

    Raises:
        UnsupportedError: not a list with a word for each layer, or a kind of layer that is not supported.
    """
    listed, layers = config.get("layer_types"), required(config, "num_hidden_layers", int)
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) != layers or not {FULL, SLIDING}.issuperset(map(str, listed)):
        raise UnsupportedError(
            f"config.json: layer_types is {listed!r}; it must be {layers} words, each {FULL!r} or {SLIDING!r}"
        )
    return [str(word) for word in listed]


def refuse_windows(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that asks for sliding windows, for a model whose layers have none.

    Raises:
        UnsupportedError: it does; the key is named.
    """
    refuse_unless(config, "sliding_window", (None,))
    if SLIDING in (read_layer_types(config) or ()):
        raise UnsupportedError(f"config.json: layer_types has {SLIDING!r}; only {FULL!r} is supported here")


def describe_numbers(config: Any) -> dict[str, Any]:
    """Describe a `LlamaConfig` in the keys of a `config.json`: the inverse of `read_numbers`."""
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads or config.heads,
        "head_dim": config.head_width or config.width // config.heads,
        "intermediate_size": config.hidden,
        "hidden_act": "silu",
        "rope_theta": config.rotary_base,
        "rope_scaling": scaling_entry(config.scaling),
        "rms_norm_eps": config.epsilon,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initial_deviation,
    }


def layer_weight_names(parameters: Iterable[str], layers: int) -> Sequence[Name]:
    """Say how checkpoints call the weights of the layers.

    Args:
        parameters: the names of one block's.
        layers: number of blocks.
    """
    names = []
    for parameter in parameters:
        path, _, leaf = parameter.rpartition(".")
        names += [
            same(f"blocks.{layer}.{parameter}", f"model.layers.{layer}.{_LAYER[path]}.{leaf}")
            for layer in range(layers)
        ]
    return names
