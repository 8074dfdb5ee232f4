"""One GGUF file: its header is checked against the file's size before anything is believed, then read by plain reads.

The format is described in the GGUF specification of the ggml project: a magic number, a version, counts, metadata
(typed keys and values), tensor infos (name, dimensions, type, offset), and the tensors, aligned. Every count and length
in it may be forged, so none is used for an allocation before the bytes that it promises are known to be there.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from .errors import CheckpointFormatError, UnsupportedError
from .reading import read_exactly, row_portions

_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_LARGEST = 1 << 48
_LONGEST_NAME = 65535
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies, and how.

    Attributes:
        shape: rows first, as torch has it; the file has it the other way round.
        kind: the ggml type's name, such as `F32` or `Q4_1`.
        start: its first byte in the file.
        row_bytes: what one run along the last dimension takes.
        rows: the product of all dimensions but the last.
    """

    shape: tuple[int, ...]
    kind: str
    start: int
    row_bytes: int
    rows: int


class GGUFFile:
    """An opened file; it stays open, so that a file put in its place meanwhile does not mix with it.

    Attributes:
        metadata: keys and values; arrays of numbers are numpy arrays, arrays of strings lists.
        tensors: by name, in their order in the file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFormatError: it is truncated, damaged or forged.
        UnsupportedError: a version or byte order that is not supported.
    """

    def __init__(self, path: Path):
        self.path = path
        # Closed with the object: the file is read as long as the checkpoint is.
        self._file = path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        header = _Header(self._file, size)
        try:
            version = header.start()
            if version not in _VERSIONS:
                swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
                said = "big-endian" if swapped else f"of version {version}"
                raise UnsupportedError(f"{path} is {said}; little-endian files of versions 2 and 3 are read")
            tensors, values = header.number("Q"), header.number("Q")
            self.metadata: dict[str, Any] = {}
            for _ in range(values):
                key = header.string(_LONGEST_NAME)
                if key in self.metadata:
                    raise CheckpointFormatError(f"the key {key} stands twice in the metadata")
                self.metadata[key] = header.value(key)
            infos = [header.tensor_info() for _ in range(tensors)]
            self.tensors = _placed(infos, header.position, self._alignment(), size)
        except CheckpointFormatError as error:
            self._file.close()
            raise CheckpointFormatError(f"{path} is not a sound GGUF file: {error}") from error
        except UnsupportedError:
            self._file.close()
            raise

    def dtype(self, name: str) -> torch.dtype:
        """Give the type in which a tensor is read: its own, or float32 where it is quantised.

        Raises:
            UnsupportedError: a type that is not read here.
        """
        kind = self.tensors[name].kind
        if kind not in _PLAIN and kind not in _QUANTIZED:
            supported = ", ".join((*_PLAIN, *_QUANTIZED))
            raise UnsupportedError(f"{name} in {self.path} is stored as {kind}; these types are read: {supported}")
        return _PLAIN.get(kind, torch.float32)

    def portions(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Give a tensor in portions of rows, as `StoredModel` reads them; quantised ones by gguf's dequantiser."""
        tensor, dtype = self.tensors[name], self.dtype(name)
        for rows, data in self.raw(name):
            if tensor.kind in _PLAIN:
                values = torch.frombuffer(data, dtype=dtype)
            else:
                # The scales of a damaged file may be anything; infinite weights are no error of this function.
                with np.errstate(all="ignore"):
                    blocks = np.frombuffer(data, np.uint8).reshape(-1, tensor.row_bytes)
                    values = torch.from_numpy(dequantize(blocks, GGMLQuantizationType[tensor.kind]))
            yield rows, values.reshape(rows.stop - rows.start, *tensor.shape[1:])

    def raw(self, name: str) -> Iterator[tuple[slice, bytearray]]:
        """Give a tensor's bytes as they are stored, in portions of rows."""
        tensor = self.tensors[name]
        first = tensor.shape[0]
        if len(tensor.shape) == 1:
            # A vector of blocks cannot be cut at its elements, and is small.
            yield slice(0, first), read_exactly(self._file, tensor.start, tensor.row_bytes, name)
            return
        row_bytes = tensor.row_bytes * tensor.rows // first
        for rows in row_portions(first, row_bytes):
            size = (rows.stop - rows.start) * row_bytes
            yield rows, read_exactly(self._file, tensor.start + rows.start * row_bytes, size, name)

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment % 8:
            raise CheckpointFormatError(f"general.alignment is {alignment!r}; it must be a multiple of 8")
        return alignment


@dataclass(frozen=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    row_bytes: int


class _Header:
    """Reads a header from its start to its end, and never beyond the file's."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._left = size

    @property
    def position(self) -> int:
        return self._file.tell()

    def start(self) -> int:
        magic = self._take(4, "the magic number")
        if magic != b"GGUF":
            raise CheckpointFormatError(f"it begins with {magic!r}, not with b'GGUF'")
        return self.number("I")

    def number(self, code: str) -> Any:
        layout = "<" + code
        return struct.unpack(layout, self._take(struct.calcsize(layout), "a number"))[0]

    def string(self, most: int | None = None) -> str:
        size = self.number("Q")
        if most is not None and size > most:
            raise CheckpointFormatError(f"a name of {size} bytes; the longest may have {most}")
        content = self._take(size, "a string")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointFormatError(f"the string {content[:40]!r} is not UTF-8") from error

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise CheckpointFormatError(f"the value of {key} has the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, key: str) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            # Each has a length before it.
            if count > self._left // 8:
                raise CheckpointFormatError(f"{key} promises {count} strings, more than the file has bytes for")
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            said = "arrays" if kind == _ARRAY else f"values of the unknown type {kind}"
            raise CheckpointFormatError(f"{key} is an array of {said}, which is not supported")
        dtype = np.dtype("<" + _SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize, key), dtype)

    def tensor_info(self) -> _Info:
        name = self.string(_LONGEST_NAME)
        dimensions = self.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise CheckpointFormatError(f"{name} has {dimensions} dimensions; there may be 1 to {_MOST_DIMENSIONS}")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        code, offset = self.number("I"), self.number("Q")
        if not all(shape) or prod(shape) >= _LARGEST:
            raise CheckpointFormatError(f"{name} has the shape {shape}")
        try:
            kind = GGMLQuantizationType(code)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise CheckpointFormatError(f"{name} has the unknown type {code}") from error
        if shape[-1] % block:
            raise CheckpointFormatError(
                f"{name} has rows of {shape[-1]}, which {kind.name} blocks of {block} do not fill"
            )
        return _Info(name, shape, kind.name, offset, shape[-1] // block * block_bytes)

    def _take(self, size: int, what: str) -> bytes:
        if size > self._left:
            raise CheckpointFormatError(f"{what} takes {size} bytes, and the file has {self._left} left")
        content = self._file.read(size)
        if len(content) < size:
            raise CheckpointFormatError(f"it became shorter while it was read, at {what}")
        self._left -= size
        return content


def _placed(infos: list[_Info], header_end: int, alignment: int, size: int) -> dict[str, GGUFTensor]:
    """Place the tensors after the header; none may reach beyond the file or into another."""
    data = -(-header_end // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    extents: list[tuple[int, int, str]] = []
    for info in infos:
        if info.name in tensors:
            raise CheckpointFormatError(f"the tensor {info.name} stands twice in the header")
        rows = prod(info.shape[:-1])
        start = data + info.offset
        end = start + rows * info.row_bytes
        if info.offset % alignment or end > size:
            raise CheckpointFormatError(
                f"{info.name} is said to be the bytes {start} to {end} of {size}, aligned to {alignment}"
            )
        tensors[info.name] = GGUFTensor(info.shape, info.kind, start, info.row_bytes, rows)
        extents.append((start, end, info.name))
    extents.sort()
    for (_, end, name), (start, _, following) in pairwise(extents):
        if start < end:
            raise CheckpointFormatError(f"{name} and {following} overlap")
    return tensors
