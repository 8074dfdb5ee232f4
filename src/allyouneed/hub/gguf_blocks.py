"""GGUF's own 4-bit, 5-bit and 8-bit groups, taken apart but not dequantised.

The layouts are those of ggml: a block holds its scale in float16, its minimum where it has one, and its numbers, two to
a byte for 4 bits, the first half of a group in the low nibbles and the second half in the high ones. Of 5 bits, the
fifth ones lie by themselves; such numbers fit into 8 bits, and their scale stays what it is.
"""

from collections.abc import Callable

import numpy as np
import torch
from gguf.quants import Q4_K
from jaxtyping import UInt8

from .stored import QuantizedBlocks

_GROUP = 32

_Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def quantized_blocks(kind: str, stored: UInt8[np.ndarray, "rows row_bytes"]) -> QuantizedBlocks | None:
    """Take the stored rows of a matrix apart; None for a type that is not run so here.

    These are 4 and 8 bits, and 5 bits in 8, in groups of 32. Of others, Q6_K has groups of 16, which no kernel takes,
    and Q5_1 and Q5_K have minima, which the 8-bit one does not.
    """
    if kind not in _READERS:
        return None
    block_bytes, read = _READERS[kind]
    rows = len(stored)
    quants, scale, minimum = read(stored.reshape(-1, block_bytes))
    return QuantizedBlocks(
        kind=kind,
        bits=8 if quants.dtype == np.int8 else 4,
        quants=torch.from_numpy(quants.reshape(rows, -1)),
        scale=torch.from_numpy(scale.reshape(rows, -1)),
        minimum=None if minimum is None else torch.from_numpy(minimum.reshape(rows, -1)),
    )


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _q4_0(blocks: np.ndarray) -> _Parts:
    scale = _half(blocks[:, :2])
    # Stored numbers are from -8 to 7, and kept 8 higher. In 32 bits, where eight times a scale is always exact.
    return _nibbles(blocks[:, 2:]), scale.astype(np.float32), -8 * scale.astype(np.float32)


def _q4_1(blocks: np.ndarray) -> _Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4])


def _q8_0(blocks: np.ndarray) -> _Parts:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half(blocks[:, :2]), None


def _q5_0(blocks: np.ndarray) -> _Parts:
    fifth = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little")
    numbers = (_nibbles(blocks[:, 6:]) | (fifth << 4)).astype(np.int8) - np.int8(16)
    return numbers, _half(blocks[:, :2]), None


def _q4_k(blocks: np.ndarray) -> _Parts:
    # A block of 256 has eight groups, whose scales and minima are in 6 bits, in units of the block's own two.
    scales, minima = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    scale = _half(blocks[:, :2]).astype(np.float32) * scales
    minimum = -(_half(blocks[:, 2:4]).astype(np.float32) * minima)
    # Each 32 bytes hold two groups.
    return _nibbles(blocks[:, 16:].reshape(-1, 4, _GROUP)), scale, minimum


def _half(stored: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(stored).view(np.float16)


_READERS: dict[str, tuple[int, Callable[[np.ndarray], _Parts]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
}
