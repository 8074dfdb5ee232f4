"""One safetensors file, read by plain reads: nothing stays mapped, so memory is what was asked for and no more."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointFormatError, UnsupportedError
from .reading import read_exactly, row_portions

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A file that stays open, so that what is read is of one generation even where the file is replaced meanwhile.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFormatError: it is truncated, or not a safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        # Closed with the object: the file is read as long as the checkpoint is.
        self._file = path.open("rb", buffering=0)
        try:
            # The library checks that the header is sound and that tensors fill the file, without holes or overlap.
            with safe_open(path, framework="np"):
                pass
            size = path.stat().st_size
            (length,) = struct.unpack("<Q", read_exactly(self._file, 0, 8, "its header"))
            if length > size - 8:
                raise CheckpointFormatError(f"it has a header of {length} bytes, and {size} bytes in all")
            header = json.loads(
                read_exactly(self._file, 8, length, "its header"), object_pairs_hook=_without_duplicates
            )
            self.entries = {
                name: _entry(name, fields, 8 + length, size)
                for name, fields in header.items()
                if name != "__metadata__"
            }
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._file.close()
            raise CheckpointFormatError(f"{path} is not a sound safetensors file: {error}") from error

    def dtype(self, name: str) -> torch.dtype:
        """Give the type in which a tensor is stored.

        Raises:
            UnsupportedError: a type that is not read here, such as 8-bit floats.
        """
        stored = self.entries[name].dtype
        if stored not in _DTYPES:
            raise UnsupportedError(
                f"{name} in {self.path} is stored as {stored}; these types are read: {', '.join(_DTYPES)}"
            )
        return _DTYPES[stored]

    def portions(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Give a tensor in portions of rows, as `StoredModel` reads them."""
        entry = self.entries[name]
        dtype = self.dtype(name)
        shape = entry.shape or (1,)
        row_bytes = prod(shape[1:]) * dtype.itemsize
        for rows in row_portions(shape[0], row_bytes):
            count = rows.stop - rows.start
            data = read_exactly(self._file, entry.start + rows.start * row_bytes, count * row_bytes, name)
            values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            yield rows, values.reshape(count, *shape[1:])


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise CheckpointFormatError("a key stands twice in the header")
    return keys


def _entry(name: str, fields: Mapping[str, Any], data: int, size: int) -> _Entry:
    shape = tuple(int(axis) for axis in fields["shape"])
    start, end = (data + int(offset) for offset in fields["data_offsets"])
    dtype = str(fields["dtype"])
    bytes_of_shape = prod(shape) * _DTYPES[dtype].itemsize if dtype in _DTYPES else end - start
    if not data <= start <= end <= size or end - start != bytes_of_shape or max(shape, default=0) >= 1 << 48:
        raise CheckpointFormatError(f"{name} of type {dtype} and shape {shape} cannot be the bytes {start} to {end}")
    return _Entry(dtype, shape, start, end)
