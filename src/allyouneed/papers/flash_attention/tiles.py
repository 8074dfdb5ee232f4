"""What FlashAttention's kernels are made of: tiles of vectors, loaded and stored with bounds, and their products."""

# The import hook of the tests leaves alone what is marked `no_type_check`: Triton reads these functions' source.
# Upper case, as Triton has it, is what a kernel is compiled for.
# ruff: noqa: N803
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def load_tile(base, rows, count, HEAD_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CHECKED: tl.constexpr):
    """Load vectors; those beyond `count`, and coordinates beyond the head's width, are 0."""
    inside = tl.arange(0, WIDTH)
    places = base + rows[:, None] * HEAD_WIDTH + inside[None, :]
    if CHECKED:
        return tl.load(places, mask=(rows[:, None] < count) & (inside[None, :] < HEAD_WIDTH), other=0.0)
    if WIDTH != HEAD_WIDTH:
        return tl.load(places, mask=inside[None, :] < HEAD_WIDTH, other=0.0)
    return tl.load(places)


@triton.jit
@no_type_check
def store_tile(base, rows, count, block, HEAD_WIDTH: tl.constexpr, WIDTH: tl.constexpr):
    """Store vectors; those beyond `count`, and coordinates beyond the head's width, stay as they are."""
    inside = tl.arange(0, WIDTH)
    places = base + rows[:, None] * HEAD_WIDTH + inside[None, :]
    block = block.to(base.dtype.element_ty)
    tl.store(places, block, mask=(rows[:, None] < count) & (inside[None, :] < HEAD_WIDTH))


@triton.jit
@no_type_check
def add_product(total, left, right, PRECISION: tl.constexpr):
    """Add left · right; "widened" turns both to 32 bits, since the interpreter multiplies the bits of bfloat16."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
@no_type_check
def product(left, right, PRECISION: tl.constexpr):
    """Give left · right in 32 bits."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision=PRECISION)
