"""What the compiled code is told: instructions, the buffers that they work on, and weights in tiles. See `decode.cpp`."""

import ctypes
from collections.abc import Callable, Sequence
from enum import IntEnum

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from .compiler import CompilerError, compiled

ROWS = 16
"""Rows of a tile."""

COLUMNS = 32
"""Columns of a group."""

_AT_ONCE = 4096


class Kind(IntEnum):
    """The instructions, in the order in which `decode.cpp` has them."""

    RMS_NORM = 0
    LAYER_NORM = 1
    LINEAR_BY_ROWS = 2
    LINEAR_BY_COLUMNS = 3
    ROTATE = 4
    ATTEND = 5
    ACTIVATE = 6
    LINEAR_4_BITS = 7
    LINEAR_8_BITS = 8


class Instruction(ctypes.Structure):
    """One operation on all tokens; its fields are explained in `decode.cpp`."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("input", ctypes.c_int64),
        ("input_offset", ctypes.c_int64),
        ("output", ctypes.c_int64),
        ("output_offset", ctypes.c_int64),
        ("size", ctypes.c_int64 * 4),
        ("data", ctypes.c_void_p * 2),
        ("number", ctypes.c_double),
    )


class Buffer(ctypes.Structure):
    """A vector for each token."""

    _fields_ = (("at", ctypes.c_void_p), ("stride", ctypes.c_int64))


class Step(ctypes.Structure):
    """What all instructions share in one step."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("buffers", ctypes.POINTER(Buffer)),
        ("cosine", ctypes.c_void_p),
        ("sine", ctypes.c_void_p),
        ("rotated", ctypes.c_int64),
        ("rotation_stride", ctypes.c_int64),
        ("keys", ctypes.POINTER(ctypes.c_void_p)),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("head_stride", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("most_blocks", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_token_stride", ctypes.c_int64),
        ("mask_head_stride", ctypes.c_int64),
    )


def run(instructions: "ctypes.Array[Instruction]", step: Step) -> None:
    """Carry out instructions, on as many threads as torch has. Other Python threads go on meanwhile."""
    step.threads = torch.get_num_threads()
    compiled().library.run(instructions, ctypes.c_int64(len(instructions)), ctypes.byref(step))


def buffers(tensors: Sequence[Float[Tensor, "tokens _"]]) -> "ctypes.Array[Buffer]":
    """Describe buffers of contiguous rows."""
    return (Buffer * len(tensors))(*((tensor.data_ptr(), tensor.shape[1]) for tensor in tensors))


class Tiles:
    """A linear layer's weights in few bits, as the compiled code reads them.

    Args:
        integers: gives those of some rows: from -128 to 127 where weights have 8 bits, from 0 to 15 where they have 4.
        scale: of each group of 32 columns.
        zero: of each group: what an integer in the middle, 8 of 0 to 15, stands for; for 4 bits alone.

    Raises:
        CompilerError: no compiler, or a processor without AVX-512 for bfloat16.
    """

    def __init__(
        self,
        integers: Callable[[slice], Int8[Tensor, "some columns"] | UInt8[Tensor, "some columns"]],
        scale: Float[Tensor, "rows groups"],
        zero: Float[Tensor, "rows groups"] | None = None,
    ):
        if not compiled().library.few_bits():
            raise CompilerError(
                "this processor has no AVX-512 for bfloat16, by which weights in few bits are multiplied"
            )
        rows, groups = scale.shape
        tiles = -(-rows // ROWS)
        parts = [scale] if zero is None else [scale, zero]
        integer_bytes = ROWS * COLUMNS // (1 if zero is None else 2)
        self.kind = Kind.LINEAR_8_BITS if zero is None else Kind.LINEAR_4_BITS
        self.rows, self.columns = rows, groups * COLUMNS
        self.weights = torch.zeros(tiles, groups, integer_bytes + 2 * ROWS * len(parts), dtype=torch.uint8)
        for start in range(0, rows, _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, rows))
            own = self.weights[start // ROWS : -(-some.stop // ROWS)]
            # The integers of two columns of all rows lie side by side, then those of the next two.
            pairs = _whole_tiles(integers(some)).unflatten(2, (groups, ROWS, 2)).permute(0, 2, 3, 1, 4)
            joined = pairs if zero is None else _joined(pairs)
            own[:, :, :integer_bytes] = joined.reshape(len(own), groups, -1).view(torch.uint8)
            for place, part in enumerate(parts):
                at = integer_bytes + 2 * ROWS * place
                numbers = _whole_tiles(part[some].to(torch.bfloat16)).transpose(1, 2).contiguous()
                own[:, :, at : at + 2 * ROWS] = numbers.view(torch.uint8)

    def __deepcopy__(self, memo: object) -> "Tiles":
        # Never changed.
        return self

    def instruction(self, source: int, offset: int, target: int, target_offset: int, *, add: bool) -> Instruction:
        """Multiply what is in one buffer, and put the result into another."""
        size = (self.rows, self.columns, int(add), 0)
        return Instruction(self.kind, source, offset, target, target_offset, size, (self.weights.data_ptr(), None), 0.0)

    def __call__(self, hidden: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens rows"]:
        """Multiply vectors in 32 bits; the products are rounded to bfloat16."""
        hidden = hidden.contiguous()
        mapped = hidden.new_empty(len(hidden), self.rows)
        step = Step(tokens=len(hidden), buffers=buffers((hidden, mapped)))
        run((Instruction * 1)(self.instruction(0, 0, 1, 0, add=False)), step)
        return mapped


def _whole_tiles(numbers: Tensor) -> Tensor:
    """Split rows into tiles, the last filled up with zeros."""
    missing = -len(numbers) % ROWS
    if missing:
        numbers = torch.cat((numbers, numbers.new_zeros(missing, numbers.shape[1])))
    return numbers.unflatten(0, (-1, ROWS))


def _joined(pairs: UInt8[Tensor, "tiles groups 16 rows 2"]) -> Int[Tensor, "tiles groups 4 rows 2"]:
    """Join four integers of 4 bits to one of 16, the first in the lowest bits."""
    four = pairs.unflatten(2, (4, 4)).to(torch.int32)
    joined = four[:, :, :, 0] | four[:, :, :, 1] << 4 | four[:, :, :, 2] << 8 | four[:, :, :, 3] << 12
    return joined.to(torch.int16)
