"""Load a published model into the room that reads its architecture: `allyouneed.load(name)`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from allyouneed.hub import Pretrained, Quantization, StoredModel, UnsupportedError, WeightsError, open_model
from allyouneed.text import Tokenizer

# Imported when they are needed, since a room brings its paper's other parts with it.
_ROOMS: Mapping[str, tuple[str, str]] = {
    "bert": ("allyouneed.papers.bert", "Bert"),
    "gpt2": ("allyouneed.papers.gpt2", "GPT2"),
    "llama": ("allyouneed.papers.llama1", "Llama"),
    "mistral": ("allyouneed.papers.llama1", "Llama"),
}
"""By `config.json`'s `model_type`: the module, and the class in it. Relatives that differ only in numbers share one."""


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Quantization | None = None,
) -> tuple[Pretrained, Tokenizer]:
    """Load a published model and its tokenizer; its `config.json` decides the architecture.

    Args:
        name: an asset's name, such as `smollm2-135m-instruct` or `all-minilm-l6-v2`, fetched where it is not in the
            cache; a folder with `config.json` and safetensors files; a GGUF file; or a hub repository, `owner/name`.
        dtype: of the weights; the narrowest that holds them as they are stored where None.
        device: where to put them; the CPU where None.
        quantize: run the linear maps in 8 bits, or in the checkpoint's own 4-bit groups.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: nothing of this name is known.
        FileNotFoundError: a path that does not exist, or a folder that lacks a file.
        CheckpointFormatError: a damaged file.
        UnsupportedError: an architecture, a configuration or a type that is not supported, named.
        WeightsError: weights or a vocabulary that do not fit the model, named.
        AssetError: the asset could not be fetched.
    """
    return load_opened(open_model(name), dtype=dtype, device=device, quantize=quantize)


def load_opened(
    stored: StoredModel,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Quantization | None = None,
) -> tuple[Pretrained, Tokenizer]:
    """Load the model and tokenizer of an opened checkpoint; arguments, results and errors as in `load`."""
    model_class = _room_of(stored)
    tokenizer = model_class.read_tokenizer(stored)
    known = stored.config.get("vocab_size")
    if isinstance(known, int) and tokenizer.vocabulary > known:
        raise WeightsError(
            f"{stored.source}: the tokenizer has {tokenizer.vocabulary} tokens, and the model knows only {known}"
        )
    return model_class.from_stored(stored, dtype=dtype, device=device, quantize=quantize), tokenizer


def _room_of(stored: StoredModel) -> type[Pretrained]:
    kind: Any = stored.config.get("model_type")
    if not isinstance(kind, str) or kind not in _ROOMS:
        named = stored.config.get("architectures")
        said = f"model_type {kind!r}" + (f" ({', '.join(map(str, named))})" if isinstance(named, list) else "")
        raise UnsupportedError(f"{stored.source} has the {said}; these are read: {', '.join(sorted(_ROOMS))}")
    module, name = _ROOMS[kind]
    return getattr(importlib.import_module(module), name)
