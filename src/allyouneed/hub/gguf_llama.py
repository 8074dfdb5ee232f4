"""What GGUF files of LLaMA and its relatives call things, in the words of the usual layout."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .errors import CheckpointFormatError, UnsupportedError
from .gguf_file import GGUFTensor

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""By `general.architecture`, which is the `model_type` too."""

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_WHOLE_NAME = re.compile(r"(\w+)\.(weight)")
FREQUENCIES = "rope_freqs.weight"
# What is read below, and what says nothing more.
_KEYS = re.compile(
    r"vocab_size|context_length|embedding_length|block_count|feed_forward_length|expert_count|expert_used_count"
    r"|tensor_data_layout|attention\.(head_count|head_count_kv|key_length|value_length|layer_norm_rms_epsilon"
    r"|sliding_window)|rope\.(dimension_count|freq_base|scaling\."
    r"(type|factor|original_context_length|attn_factor|finetuned"
    r"|yarn_(ext_factor|attn_factor|beta_fast|beta_slow|log_multiplier)))"
)


def published_name(name: str) -> str:
    """Translate a tensor's name; one that is unknown stays, to be named in the error that it leads to."""
    if (match := _LAYER_NAME.fullmatch(name)) and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
    if (match := _WHOLE_NAME.fullmatch(name)) and match[1] in _WHOLE:
        return f"{_WHOLE[match[1]]}.{match[2]}"
    return name


def published_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, GGUFTensor], frequencies: Sequence[float] | None = None
) -> dict[str, Any]:
    """Translate the metadata into what `config.json` would say.

    Args:
        metadata: of a file whose architecture is one of `ARCHITECTURES`.
        tensors: the file's.
        frequencies: what the file divides rotary frequencies by, pair by pair; None where it does not say.

    Raises:
        CheckpointFormatError: a number that the architecture needs is missing, or is none.
        UnsupportedError: a key that is not known, experts, or numbers that differ between layers.
    """
    kind = metadata["general.architecture"]
    numbers = _Numbers(metadata, kind)
    unknown = sorted(key for key in metadata if key.startswith(f"{kind}.") and not _KEYS.fullmatch(key, len(kind) + 1))
    if unknown:
        raise UnsupportedError(f"the metadata says {', '.join(unknown[:5])}, which is not supported")
    if numbers.whole("expert_count", 0):
        raise UnsupportedError(f"{kind}.expert_count is not 0: mixtures of experts are not supported")
    if "token_embd.weight" not in tensors:
        raise CheckpointFormatError("the tensor token_embd.weight is missing")
    heads = numbers.whole("attention.head_count")
    width = numbers.whole("embedding_length")
    if not heads or not width:
        raise CheckpointFormatError(f"{heads} heads of a width of {width} cannot be")
    head_width = numbers.whole("attention.key_length", numbers.whole("rope.dimension_count", width // heads))
    if numbers.whole("attention.value_length", head_width) != head_width:
        raise UnsupportedError(f"{kind}.attention.value_length is not {head_width}, as key_length is")
    if numbers.whole("rope.dimension_count", head_width) != head_width:
        raise UnsupportedError(f"{kind}.rope.dimension_count is not {head_width}: only whole heads are rotated")
    context = numbers.whole("context_length")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": numbers.whole("feed_forward_length"),
        "num_hidden_layers": numbers.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": numbers.whole("attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": context,
        "rms_norm_eps": numbers.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": numbers.real("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(numbers, context, frequencies),
        "hidden_act": "silu",
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if kind != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if window := numbers.whole("attention.sliding_window", 0):
        if kind != "llama":
            raise UnsupportedError(
                f"{kind}.attention.sliding_window is {window}, and the metadata does not say which layers have it"
            )
        # As Mistral's files say it, whose architecture is otherwise LLaMA's.
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(token) is int:
            config[f"{ours}_token_id"] = token
    return config


def _scaling(numbers: "_Numbers", context: int, frequencies: Sequence[float] | None) -> dict[str, Any] | None:
    """Give the scaling of rotary positions as `config.json` would.

    Computed as ggml does: YaRN's bounds are rounded outwards, and its attention factor is multiplied by `attn_factor`.

    Raises:
        UnsupportedError: a kind of scaling or a setting that is not supported, named.
    """
    kind = numbers.text("rope.scaling.type", "none")
    for key, usual in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        numbers.refuse_unless(f"rope.scaling.{key}", usual)
    if kind != "yarn":
        numbers.refuse_unless("rope.scaling.attn_factor", 1.0)
    if frequencies is not None:
        if kind != "none":
            raise UnsupportedError(f"the metadata asks for the scaling {kind!r} besides the tensor {FREQUENCIES}")
        # Files of Llama 3.1 state what its scaling comes to, and not its settings.
        return {
            "rope_type": "longrope",
            "short_factor": list(frequencies),
            "long_factor": list(frequencies),
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }
    factor = numbers.real("rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(f"rope.scaling.type is {kind!r}; 'none', 'linear' and 'yarn' are supported")
    magnitude = numbers.real("rope.scaling.attn_factor", 1.0) * (0.1 * math.log(max(factor, 1.0)) + 1)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": numbers.whole("rope.scaling.original_context_length", context),
        "attention_factor": magnitude,
        "beta_fast": numbers.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": numbers.real("rope.scaling.yarn_beta_slow", 1.0),
    }


def row_order(name: str, config: Mapping[str, Any], rows: int) -> Int[Tensor, " rows"] | None:
    """Tell where each stored row of a query or key projection stands in the usual layout; None where rows are in order.

    Rotary positions rotate coordinates in pairs. The usual layout pairs the first half of a head with its second half.
    GGUF pairs neighbours in LLaMA, so its converter interleaves the two halves of each head's rows, but not Qwen's.

    Raises:
        CheckpointFormatError: rows that cannot be divided among the heads.
    """
    match = re.fullmatch(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)", name)
    if match is None or config["model_type"] not in ("llama", "mistral"):
        return None
    heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
    if not heads or rows % (2 * heads):
        raise CheckpointFormatError(f"{name} has {rows} rows, which cannot be halves of {heads} heads")
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).flatten()


class _Numbers:
    """The numbers of the architecture in the metadata."""

    def __init__(self, metadata: Mapping[str, Any], kind: str):
        self._metadata = metadata
        self._kind = kind

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, np.ndarray):
            if len(set(value.tolist())) != 1:
                raise UnsupportedError(f"{self._kind}.{key} differs between layers, which is not supported")
            value = value.tolist()[0]
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise CheckpointFormatError(f"{self._kind}.{key} is {value!r}; it must be a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) is not float or not 0 <= value < float("inf"):
            raise CheckpointFormatError(f"{self._kind}.{key} is {value!r}; it must be a number, not below zero")
        # It was stored in 32 bits: the shortest decimal that becomes this number there is what was meant.
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise CheckpointFormatError(f"{self._kind}.{key} is {value!r}; it must be a word")
        return value

    def refuse_unless(self, key: str, usual: float) -> None:
        if (value := self.real(key, usual)) != usual:
            raise UnsupportedError(f"{self._kind}.{key} is {value}; only {usual} is supported")

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"{self._kind}.{key}", default)
        if value is None:
            raise CheckpointFormatError(f"{self._kind}.{key} is missing from the metadata")
        return value
