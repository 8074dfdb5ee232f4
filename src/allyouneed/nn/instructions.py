"""What the compiled code is told: instructions, buffers, weights in tiles; see `decode.cpp` and `few_bits.h`."""

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
    LINEAR_4_BITS_WIDE_SCALES = 8
    LINEAR_5_BITS = 9
    LINEAR_8_BITS = 10
    LINEAR_8_BITS_WIDE_SCALES = 11


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
    """A linear layer's weights in few bits, as the compiled code reads them: integer · scale + minimum, exactly.

    Integers from -16 to 15, as those of GGUF's Q5_0, take 5 bits, wider ones 8.

    Args:
        integers: gives those of some rows: with a minimum from 0 to 15, else from -128 to 127.
        scale: of each group of 32 columns.
        minimum: of each group; where there is one, weights have 4 bits.

    Raises:
        CompilerError: no compiler, or a processor without AVX-512 VNNI.
    """

    def __init__(
        self,
        integers: Callable[[slice], Int8[Tensor, "some columns"] | UInt8[Tensor, "some columns"]],
        scale: Float[Tensor, "rows groups"],
        minimum: Float[Tensor, "rows groups"] | None = None,
    ):
        if not compiled().library.few_bits():
            raise CompilerError("this processor has no AVX-512 VNNI, by which weights in few bits are multiplied")
        rows, groups = scale.shape
        tiles = -(-rows // ROWS)
        parts = [scale] if minimum is None else [scale, minimum]
        every = [slice(start, min(start + _AT_ONCE, rows)) for start in range(0, rows, _AT_ONCE)]
        narrow = all(torch.equal(part.half().double(), part.double()) for part in parts)
        if minimum is not None:
            kind, lay, integer_bytes = Kind.LINEAR_4_BITS, _four_bits, ROWS * COLUMNS // 2
        elif narrow and all(bool(((own := integers(some)) >= -16).all() and (own < 16).all()) for some in every):
            kind, lay, integer_bytes = Kind.LINEAR_5_BITS, _five_bits, ROWS * COLUMNS // 8 * 5
        else:
            kind, lay, integer_bytes = Kind.LINEAR_8_BITS, _eight_bits, ROWS * COLUMNS
        self.kind = Kind(kind + (not narrow))
        self.rows, self.columns = rows, groups * COLUMNS
        scale_bytes = ROWS * (2 if narrow else 4)
        self.weights = torch.zeros(tiles, groups, integer_bytes + scale_bytes * len(parts), dtype=torch.uint8)
        for some in every:
            own = self.weights[some.start // ROWS : -(-some.stop // ROWS)]
            # The integers of two columns of all rows lie side by side, then those of the next two.
            pairs = _whole_tiles(integers(some)).unflatten(2, (groups, COLUMNS // 2, 2)).permute(0, 2, 3, 1, 4)
            own[:, :, :integer_bytes] = lay(pairs.flatten(3))
            for place, part in enumerate(parts):
                at = integer_bytes + scale_bytes * place
                numbers = _whole_tiles(part[some].half() if narrow else part[some].float()).transpose(1, 2).contiguous()
                own[:, :, at : at + scale_bytes] = numbers.view(torch.uint8)

    def __deepcopy__(self, memo: object) -> "Tiles":
        # Never changed.
        return self

    def instruction(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        *,
        bias: Float[Tensor, " rows"] | None = None,
        add: bool = False,
    ) -> Instruction:
        """Multiply what is in one buffer and add a bias; put the result into another, or add it to what is there."""
        size = (self.rows, self.columns, int(add), 0)
        data = (self.weights.data_ptr(), None if bias is None else bias.data_ptr())
        return Instruction(self.kind, *source, *target, size, data, 0.0)

    def __call__(self, hidden: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens rows"]:
        """Multiply vectors in 32 bits."""
        hidden = hidden.contiguous()
        mapped = hidden.new_empty(len(hidden), self.rows)
        step = Step(tokens=len(hidden), buffers=buffers((hidden, mapped)))
        run((Instruction * 1)(self.instruction((0, 0), (1, 0))), step)
        return mapped


def _whole_tiles(numbers: Tensor) -> Tensor:
    """Split rows into tiles, the last filled up with zeros."""
    missing = -len(numbers) % ROWS
    if missing:
        numbers = torch.cat((numbers, numbers.new_zeros(missing, numbers.shape[1])))
    return numbers.unflatten(0, (-1, ROWS))


_Pairs = Int[Tensor, "tiles groups 16 32"] | UInt8[Tensor, "tiles groups 16 32"]


def _eight_bits(pairs: _Pairs) -> UInt8[Tensor, "tiles groups 512"]:
    return pairs.flatten(2).contiguous().view(torch.uint8)


def _four_bits(pairs: _Pairs) -> UInt8[Tensor, "tiles groups 256"]:
    """Join the integers of four pairs of columns to 16 bits, the first in the lowest."""
    four = pairs.unflatten(2, (4, 4)).to(torch.int32)
    joined = four[:, :, :, 0] | four[:, :, :, 1] << 4 | four[:, :, :, 2] << 8 | four[:, :, :, 3] << 12
    return joined.to(torch.int16).flatten(2).view(torch.uint8)


def _five_bits(pairs: _Pairs) -> UInt8[Tensor, "tiles groups 320"]:
    above = pairs.to(torch.int16) + 16
    fifth = ((above >> 4) << torch.arange(8, dtype=torch.int16).repeat(4)).unflatten(3, (4, 8)).sum(4)
    return torch.cat((_four_bits(above & 15), fifth.to(torch.uint8).flatten(2)), 2)
