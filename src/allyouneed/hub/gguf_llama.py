"""What GGUF files of the architecture `llama` call things, in the words of the usual layout."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .errors import CheckpointFormatError, UnsupportedError
from .gguf_file import GGUFTensor

ARCHITECTURE = "llama"

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_WHOLE_NAME = re.compile(r"(\w+)\.(weight)")
_FREQUENCIES = "rope_freqs.weight"
# What is read below, and what says nothing more.
_KEYS = re.compile(
    r"vocab_size|context_length|embedding_length|block_count|feed_forward_length|expert_count|expert_used_count"
    r"|tensor_data_layout|attention\.(head_count|head_count_kv|key_length|value_length|layer_norm_rms_epsilon"
    r"|sliding_window)|rope\.(dimension_count|freq_base|scaling\.\w+)"
)


def published_name(name: str) -> str:
    """Translate a tensor's name; one that is unknown stays, to be named in the error that it leads to."""
    if (match := _LAYER_NAME.fullmatch(name)) and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
    if (match := _WHOLE_NAME.fullmatch(name)) and match[1] in _WHOLE:
        return f"{_WHOLE[match[1]]}.{match[2]}"
    return name


def published_config(metadata: Mapping[str, Any], tensors: Mapping[str, GGUFTensor]) -> dict[str, Any]:
    """Translate the metadata into what `config.json` would say.

    Raises:
        CheckpointFormatError: a number that the architecture needs is missing, or is none.
        UnsupportedError: a key that is not known, experts, or numbers that differ between layers.
    """
    numbers = _Numbers(metadata)
    unknown = sorted(
        key
        for key in metadata
        if key.startswith(f"{ARCHITECTURE}.") and not _KEYS.fullmatch(key, len(ARCHITECTURE) + 1)
    )
    if unknown:
        raise UnsupportedError(f"the metadata says {', '.join(unknown[:5])}, which is not supported")
    if numbers.whole("expert_count", 0):
        raise UnsupportedError(f"{ARCHITECTURE}.expert_count is not 0: mixtures of experts are not supported")
    if "token_embd.weight" not in tensors:
        raise CheckpointFormatError("the tensor token_embd.weight is missing")
    heads = numbers.whole("attention.head_count")
    width = numbers.whole("embedding_length")
    if not heads or not width:
        raise CheckpointFormatError(f"{heads} heads of a width of {width} cannot be")
    head_width = numbers.whole("attention.key_length", numbers.whole("rope.dimension_count", width // heads))
    if numbers.whole("attention.value_length", head_width) != head_width:
        raise UnsupportedError(f"{ARCHITECTURE}.attention.value_length is not {head_width}, as key_length is")
    if numbers.whole("rope.dimension_count", head_width) != head_width:
        raise UnsupportedError(f"{ARCHITECTURE}.rope.dimension_count is not {head_width}: only whole heads are turned")
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": numbers.whole("feed_forward_length"),
        "num_hidden_layers": numbers.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": numbers.whole("attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": numbers.whole("context_length"),
        "rms_norm_eps": numbers.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": numbers.real("rope.freq_base", 10000.0),
        "rope_scaling": numbers.scaling(_FREQUENCIES in tensors),
        "sliding_window": numbers.whole("attention.sliding_window", 0) or None,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(token) is int:
            config[f"{ours}_token_id"] = token
    return config


def row_order(name: str, config: Mapping[str, Any], rows: int) -> Int[Tensor, " rows"] | None:
    """Tell where each stored row of a query or key map stands in the usual layout; None where rows are in order.

    Rotary positions turn coordinates in pairs. The usual layout pairs the first half of a head with its second half,
    GGUF pairs neighbours, so its converter interleaves the two halves of each head's rows.

    Raises:
        CheckpointFormatError: rows that cannot be divided among the heads.
    """
    match = re.fullmatch(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)", name)
    if match is None:
        return None
    heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
    if not heads or rows % (2 * heads):
        raise CheckpointFormatError(f"{name} has {rows} rows, which cannot be halves of {heads} heads")
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).flatten()


class _Numbers:
    """The numbers of the architecture in the metadata."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, np.ndarray):
            if len(set(value.tolist())) != 1:
                raise UnsupportedError(f"{ARCHITECTURE}.{key} differs between layers, which is not supported")
            value = value.tolist()[0]
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise CheckpointFormatError(f"{ARCHITECTURE}.{key} is {value!r}; it must be a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) is not float or not 0 <= value < float("inf"):
            raise CheckpointFormatError(f"{ARCHITECTURE}.{key} is {value!r}; it must be a number, not below zero")
        # It was stored in 32 bits: the shortest decimal that becomes this number there is what was meant.
        return float(str(np.float32(value)))

    def scaling(self, frequencies: bool) -> dict[str, Any] | None:
        """Give the scaling of rotary positions as `config.json` would, for the model to accept or refuse."""
        kind = self._metadata.get(f"{ARCHITECTURE}.rope.scaling.type", "none")
        factor = self._metadata.get(f"{ARCHITECTURE}.rope.scaling.factor", 1.0)
        if frequencies:
            return {"rope_type": "llama3", "factor": factor}
        return None if kind == "none" else {"rope_type": kind, "factor": factor}

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"{ARCHITECTURE}.{key}", default)
        if value is None:
            raise CheckpointFormatError(f"{ARCHITECTURE}.{key} is missing from the metadata")
        return value
