"""Which class reads which architecture, so that whoever needs any model can load one without knowing its room.

A room imports another only where its paper builds on that paper. A room that only needs a language model to try
something on, such as a published one, takes it from here by name, as `allyouneed.load` does: classes are looked up when
they are needed, by the `model_type` of the checkpoint, since a room brings its paper's other parts with it.
"""

import importlib
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from allyouneed.hub import (
    READERS,
    Pretrained,
    Quantization,
    StoredModel,
    UnsupportedError,
    WeightsError,
    architecture_of,
    open_model,
    warn_of_head,
)
from allyouneed.prompting import BatchModel, WorkerBatch
from allyouneed.text import ChatTemplate, LanguageModel, LocalChat, Tokenizer


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Quantization | None = None,
) -> tuple[Pretrained, Tokenizer]:
    """Load a published model and its tokenizer; its `config.json` decides the architecture.

    The class that is loaded is an encoder or a language model; a checkpoint with another head, such as a classifier's,
    is read without it, and a warning names the class that reads it whole.

    Args:
        name: an asset's name, such as `smollm2-135m-instruct` or `all-minilm-l6-v2`, fetched where it is not in the
            cache; a folder with `config.json` and safetensors files; a GGUF file; or a hub repository, `owner/name`.
        dtype: of the weights; the narrowest that holds them as they are stored where None.
        device: where to put them; the CPU where None.
        quantize: run the linear layers in 8 bits, or in the checkpoint's own 4-bit groups.

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
        _check_surplus(stored, tokenizer, known)
    model = reader.from_stored(stored, dtype=dtype, device=device, quantize=quantize)
    warn_of_head(stored, reader, Pretrained)
    if isinstance(known, int) and tokenizer.vocabulary < known:
        model.decodable = tokenizer.vocabulary
    return model, tokenizer


def _check_surplus(stored: StoredModel, tokenizer: Tokenizer, known: int) -> None:
    """Refuse a tokenizer with tokens that the model has no embeddings for, if any of them could come up.

    A special token that was added for padding, and nothing else, never does: text is not searched for it, nothing is
    begun or ended with it, and the chat template does not write it.
    """
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    surplus = range(known, tokenizer.vocabulary)
    framed = {*tokenizer.encode_with_special_tokens(""), tokenizer.bos_token_id, *tokenizer.eos_token_ids}
    harmful = [
        names.get(token, str(token))
        for token in surplus
        if token not in names or token in framed or names[token] in (stored.chat_template or "")
    ]
    if harmful:
        raise WeightsError(
            f"{stored.source}: the tokenizer has {tokenizer.vocabulary} tokens, and the model knows only {known}; it "
            f"lacks {', '.join(harmful[:3])}{' …' if len(harmful) > 3 else ''}"
        )


def load_chat(
    name: str | Path | StoredModel,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Quantization | None = None,
    compile: bool = False,
) -> LocalChat:
    """Load a chat model: a published model with its tokenizer, its chat template and the tokens that end its answers.

    Args:
        name: as for `load_model`, or a checkpoint that was opened.
        dtype: as for `load_model`.
        device: as for `load_model`.
        quantize: as for `load_model`.
        compile: as for `LocalChat`.

    Raises:
        ValueError: a checkpoint without a chat template, or one whose template has a mistake.

    Further errors are those of `load_model`.
    """
    stored = name if isinstance(name, StoredModel) else open_model(name)
    if stored.chat_template is None:
        raise ValueError(f"{stored.source} has no chat template: it was not made for conversations")
    model, tokenizer = load_opened(stored, dtype=dtype, device=device, quantize=quantize)
    return LocalChat(cast(LanguageModel, model), tokenizer, compile=compile)


def load_batch(
    name: str | Path | StoredModel,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Quantization | None = None,
    max_num_sequences: int = 16,
    cache_megabytes: int = 512,
    workers: int = 1,
) -> BatchModel:
    """Load a published model to complete many prompts in one call, as `allyouneed.prompting` does.

    It runs on the serving room's engine. A model that is no decoder answers one by one, with a warning.

    Args:
        name: as for `load_model`, or a checkpoint that was opened.
        dtype: as for `load_model`.
        device: as for `load_model`.
        quantize: as for `load_model`.
        max_num_sequences: how many are generated at once.
        cache_megabytes: memory for keys and values.
        workers: processes, each with the model, a thread and a part of the prompts; this one alone where 1. A script
            that asks for more does so under `if __name__ == "__main__":`.

    Raises:
        ValueError: a number out of range, an opened checkpoint for several processes, a template with a mistake, or a
            decoder that the engine cannot run.

    Further errors are those of `load_model`.
    """
    if workers != 1:
        if isinstance(name, StoredModel):
            raise ValueError(f"{name.source} is open here: {workers} processes open a model by its name themselves")
        load = partial(
            load_batch,
            name,
            dtype=dtype,
            device=device,
            quantize=quantize,
            max_num_sequences=max_num_sequences,
            cache_megabytes=cache_megabytes,
        )
        return WorkerBatch(load, workers)
    stored = name if isinstance(name, StoredModel) else open_model(name)
    model, tokenizer = load_opened(stored, dtype=dtype, device=device, quantize=quantize)
    template = None if stored.chat_template is None else ChatTemplate(stored.chat_template, tokenizer)
    engine = importlib.import_module("allyouneed.papers.serving.batch")
    return engine.load(model, tokenizer, template, max_num_sequences=max_num_sequences, cache_megabytes=cache_megabytes)


def _reader_of(stored: StoredModel) -> type[Pretrained]:
    kind: Any = stored.config.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise UnsupportedError(
            f"{stored.source} has the {architecture_of(stored.config)}; these are read: {', '.join(sorted(READERS))}"
        )
    module, _, name = READERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
