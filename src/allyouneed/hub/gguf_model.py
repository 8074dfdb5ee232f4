"""Checkpoints in one GGUF file, in the words of the usual layout."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allyouneed.text import GenerationConfig, Tokenizer

from . import gguf_llama
from .errors import CheckpointFormatError, UnsupportedError
from .gguf_blocks import quantized_blocks
from .gguf_file import GGUFFile
from .gguf_tokenizer import tokenizer_from
from .stored import QuantizedBlocks, StoredModel
from .token_ids import read_generation


class GGUFModel(StoredModel):
    """A GGUF file of LLaMA or one of its relatives, opened; it stays open, and only its header is read yet.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFormatError: it is truncated, damaged or forged.
        UnsupportedError: another architecture.
    """

    def __init__(self, path: Path):
        self.source = str(path)
        self._file = GGUFFile(path)
        metadata = self._file.metadata
        architecture = metadata.get("general.architecture")
        if architecture not in gguf_llama.ARCHITECTURES:
            known = ", ".join(map(repr, gguf_llama.ARCHITECTURES))
            raise UnsupportedError(f"{path} is of the architecture {architecture!r}; of GGUF files are read {known}")
        try:
            self.config = gguf_llama.published_config(metadata, self._file.tensors, self._frequencies())
        except CheckpointFormatError as error:
            raise CheckpointFormatError(f"{path} is not a sound GGUF file: {error}") from error
        template = metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None
        # What rotary frequencies are divided by is in the configuration.
        tensors = [name for name in self._file.tensors if name != gguf_llama.FREQUENCIES]
        self._stored = {gguf_llama.published_name(name): name for name in tensors}
        if len(self._stored) < len(tensors):
            raise CheckpointFormatError(f"{path} is not a sound GGUF file: it names a tensor in two ways")

    def names(self) -> Sequence[str]:
        """Give the names of all stored tensors."""
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape."""
        return self._file.tensors[self._stored[name]].shape

    def dtype(self, name: str) -> torch.dtype:
        """Give the type in which a tensor is read: float32 where it is quantised."""
        return self._file.dtype(self._stored[name])

    def blocks(self, name: str) -> QuantizedBlocks | None:
        """Give a matrix in the groups in which it is stored; None where it is not stored in 4 or 8 bits."""
        stored = self._file.tensors[self._stored[name]]
        if len(stored.shape) != 2:
            return None
        rows = np.empty((stored.rows, stored.row_bytes), np.uint8)
        order = gguf_llama.row_order(name, self.config, stored.rows)
        for place, data in self._file.raw(self._stored[name]):
            rows[place if order is None else order[place].numpy()] = np.frombuffer(data, np.uint8).reshape(
                -1, stored.row_bytes
            )
        return quantized_blocks(stored.kind, rows)

    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer that the metadata describes.

        Raises:
            CheckpointFormatError: there is none, or it is damaged.
            UnsupportedError: a kind that is not supported.
        """
        return tokenizer_from(self._file.metadata, self.source)

    @cached_property
    def generation(self) -> GenerationConfig:
        """Which tokens begin, end and pad texts; the ends of a turn and of a message are ends too."""
        stated = read_generation(self.config)
        metadata = self._file.metadata
        turns = [metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eot", "eom")]
        ends = (*stated.eos_token_ids, *(token for token in turns if type(token) is int and token >= 0))
        return replace(stated, eos_token_ids=tuple(dict.fromkeys(ends)))

    def _frequencies(self) -> list[float] | None:
        tensor = self._file.tensors.get(gguf_llama.FREQUENCIES)
        if tensor is None:
            return None
        if tensor.kind != "F32" or len(tensor.shape) != 1:
            raise CheckpointFormatError(f"{gguf_llama.FREQUENCIES} is {tensor.kind} of {tensor.shape}, not F32 numbers")
        return [float(value) for _, values in self._file.portions(gguf_llama.FREQUENCIES) for value in values]

    def _portions(self, name: str) -> Iterator[tuple[slice | Tensor, Tensor]]:
        order = gguf_llama.row_order(name, self.config, self.shape(name)[0])
        for place, values in self._file.portions(self._stored[name]):
            yield (place if order is None else order[place]), values
