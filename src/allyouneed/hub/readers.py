"""Which class reads which architecture, so that whoever needs any model can load one without knowing its room.

A room imports another only where its paper builds on that paper. A room that only needs a language model to try
something on, such as a published one, takes it from here by name: classes are looked up when they are needed, by the
`model_type` of the checkpoint, as a plug-in is, and this package still imports no model.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from allyouneed.text import Tokenizer

from .errors import UnsupportedError, WeightsError
from .opening import open_model
from .pretrained import Pretrained
from .quantizing import Quantization
from .stored import StoredModel

READERS: Mapping[str, str] = {
    "bert": "allyouneed.papers.bert:Bert",
    "gpt2": "allyouneed.papers.gpt2:GPT2",
    "gpt3": "allyouneed.papers.gpt3:GPT3",
    "llama": "allyouneed.papers.llama1:Llama",
    "mistral": "allyouneed.papers.llama1:Llama",
}
"""By `config.json`'s `model_type`: a module, and a class in it that is `Pretrained`."""


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Quantization | None = None,
) -> tuple[Pretrained, Tokenizer]:
    """Load a published model and its tokenizer; its `config.json` decides the architecture.

    Args:
        name: as for `open_model`: an asset, a folder, a GGUF file, or a hub repository.
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
    """Load the model and tokenizer of an opened checkpoint; arguments, results and errors as in `load_model`."""
    reader = _reader_of(stored)
    tokenizer = reader.read_tokenizer(stored)
    known = stored.config.get("vocab_size")
    if isinstance(known, int) and tokenizer.vocabulary > known:
        raise WeightsError(
            f"{stored.source}: the tokenizer has {tokenizer.vocabulary} tokens, and the model knows only {known}"
        )
    return reader.from_stored(stored, dtype=dtype, device=device, quantize=quantize), tokenizer


def _reader_of(stored: StoredModel) -> type[Pretrained]:
    kind: Any = stored.config.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        named = stored.config.get("architectures")
        said = f"model_type {kind!r}" + (f" ({', '.join(map(str, named))})" if isinstance(named, list) else "")
        raise UnsupportedError(f"{stored.source} has the {said}; these are read: {', '.join(sorted(READERS))}")
    module, _, name = READERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
