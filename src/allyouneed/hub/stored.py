"""A checkpoint that is opened for reading, whatever its format."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from allyouneed.text import GenerationConfig, SpecialTokensMixin, Tokenizer

from .errors import UnsupportedError
from .token_ids import complete_roles, read_generation

_Tokenizer = TypeVar("_Tokenizer", bound=SpecialTokensMixin)


@dataclass(frozen=True)
class QuantizedBlocks:
    """A matrix as it is stored in few bits: weight = quants · scale + minimum, group by group along each row.

    Attributes:
        kind: the format's name, such as `Q4_1`.
        bits: that a weight is held in here, 4 or 8; those of Q5_0 are held in 8.
        quants: one whole number a weight: 0 to 15 for 4 bits, -128 to 127 for 8.
        scale: of each group.
        minimum: of each group; None where it is zero throughout.
    """

    kind: str
    bits: int
    quants: UInt8[Tensor, "rows columns"] | Int8[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    minimum: Float[Tensor, "rows groups"] | None

    @property
    def group(self) -> int:
        """The number of weights that share a scale."""
        return self.quants.shape[1] // self.scale.shape[1]

    def dequantized(self) -> Float[Tensor, "rows columns"]:
        """Give the weights, in float32."""
        weights = self.quants.float().unflatten(1, (-1, self.group)) * self.scale.float()[..., None]
        if self.minimum is not None:
            weights += self.minimum.float()[..., None]
        return weights.flatten(1)


class StoredModel(ABC):
    """An opened checkpoint: its configuration, its tensors, read one at a time, and its tokenizer.

    Names, shapes and configuration are those of the usual layout (`config.json` and safetensors), whatever the file.

    Attributes:
        source: where it was read from, for messages.
        config: in the keys of `config.json`.
        chat_template: the Jinja template that turns messages into a prompt, or None.
    """

    source: str
    config: Mapping[str, Any]
    chat_template: str | None = None

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Give the names of all stored tensors, in their order in the file."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Give the type in which a tensor is read where none is asked for."""

    @abstractmethod
    def _portions(self, name: str) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Give a tensor in portions of a few megabytes: the rows that a portion holds, and their values.

        A tensor without dimensions comes as one row.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Make the checkpoint's tokenizer.

        Raises:
            FileNotFoundError: it has none.
            ValueError: it is damaged, or of a kind that is not supported.
        """

    @cached_property
    def generation(self) -> GenerationConfig:
        """Which tokens begin, end and pad texts, from wherever the checkpoint states them.

        Raises:
            CheckpointFormatError: a file that states them is damaged.
            UnsupportedError: what it states cannot be a token.
        """
        return read_generation(self.config)

    def with_roles(self, tokenizer: _Tokenizer) -> _Tokenizer:
        """Give a tokenizer, changed, in which special tokens have the roles that only the model's own files state."""
        complete_roles(tokenizer, self.generation, self._stated_roles())
        return tokenizer

    def _stated_roles(self) -> Collection[str]:
        """Give the roles that the tokenizer's files settle."""
        return ()

    def read(self, name: str, dtype: torch.dtype | None = None, *, by_columns: bool = False) -> Tensor:
        """Read one tensor into memory of its own; beyond the result it takes a few megabytes.

        Args:
            name: one of `names()`.
            dtype: to convert to; as stored where None.
            by_columns: lay a matrix out with contiguous columns instead of rows.

        Raises:
            KeyError: there is no such tensor.
            CheckpointFormatError: the file ends before the tensor does.
            UnsupportedError: it is stored in a type that is not supported.
        """
        shape = self.shape(name)
        dtype = dtype or self.dtype(name)
        turned = by_columns and len(shape) == 2
        result = torch.empty(shape[::-1], dtype=dtype).t() if turned else torch.empty(shape, dtype=dtype)
        rows = result if shape else result[None]
        for place, values in self._portions(name):
            if isinstance(place, slice):
                rows[place].copy_(values)
            else:
                rows[place] = values.to(result.dtype)
        return result

    def blocks(self, name: str) -> QuantizedBlocks | None:
        """Give a matrix in the groups in which it is stored; None where it is not stored in 4 or 8 bits."""
        return None

    def common_dtype(self) -> torch.dtype:
        """Give the narrowest floating type that holds every weight as it is stored.

        Raises:
            UnsupportedError: there is no floating tensor.
        """
        types = {dtype for dtype in map(self.dtype, self.names()) if dtype.is_floating_point}
        if not types:
            raise UnsupportedError(f"{self.source} has no tensor of floating-point numbers")
        return reduce(torch.promote_types, types)
