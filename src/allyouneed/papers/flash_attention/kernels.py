"""FlashAttention's fused kernels, in Triton: the forward pass.

Beside the paper's Algorithms 2 and 4 they have what FlashAttention-2 changed (Dao 2023, section 3): a program holds a
block of queries and loops over keys, so that no output is read and written again; it divides by the sum once, at the
end; it keeps one number a query, the logarithm of that sum, for the backward pass. There one program a block of keys
gives dK and dV, and one a block of queries dQ, so that no two add to the same place. Exponentials are powers of 2, for
which GPUs have an instruction: scores come with log₂e in their scale.
"""

# The import hook of the tests leaves alone what is marked `no_type_check`: Triton reads these functions' source.
# Upper case, as Triton has it, is what a kernel is compiled for.
# ruff: noqa: N803
from typing import no_type_check

import triton
import triton.language as tl

from .tiles import add_product, load_tile, product, store_tile


@triton.jit
@no_type_check
def _attend(
    mixed,
    row_sum,
    row_max,
    query,
    key_base,
    value_base,
    rows,
    first,
    last,
    keys,
    scale,
    HEAD_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Merge the keys from `first` to `last` into a block of queries: Algorithm 2, lines 7 to 16."""
    for start in range(first, last, KEYS):
        columns = start + tl.arange(0, KEYS)
        key = load_tile(key_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        scores = product(query, tl.trans(key), PRECISION) * scale
        if MASKED:
            seen = columns[None, :] < keys
            if CAUSAL:
                seen = seen & (columns[None, :] <= rows[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        share = tl.exp2(row_max - new_max)
        row_sum = row_sum * share + tl.sum(weights, 1)
        mixed = mixed * share[:, None]
        value = load_tile(value_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        mixed = add_product(mixed, weights.to(value.dtype), value, PRECISION)
        row_max = new_max
    return mixed, row_sum, row_max


@triton.jit
@no_type_check
def forward(
    query_base,
    key_base,
    value_base,
    output_base,
    log_sum_base,
    queries,
    keys,
    scale,
    HEAD_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Give the output of a block of queries, and the logarithm of each query's sum of exponentials."""
    blocks = tl.cdiv(queries, QUERIES)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    # With a causal mask the last queries have most to do: they begin.
    block = blocks - 1 - tl.program_id(0) % blocks
    query_base += head * queries * HEAD_WIDTH
    output_base += head * queries * HEAD_WIDTH
    key_base += head * keys * HEAD_WIDTH
    value_base += head * keys * HEAD_WIDTH
    log_sum_base += head * queries
    rows = block * QUERIES + tl.arange(0, QUERIES)
    query = load_tile(query_base, rows, queries, HEAD_WIDTH, WIDTH, True)
    mixed = tl.zeros([QUERIES, WIDTH], tl.float32)
    row_sum = tl.zeros([QUERIES], tl.float32)
    row_max = tl.full([QUERIES], float("-inf"), tl.float32)
    # Only the blocks on the diagonal, or the last one, are compared key by key.
    if CAUSAL:
        whole = block * QUERIES // KEYS * KEYS
        last = tl.minimum(keys, (block + 1) * QUERIES)
    else:
        whole = keys // KEYS * KEYS
        last = keys
    mixed, row_sum, row_max = _attend(
        mixed, row_sum, row_max, query, key_base, value_base, rows, 0, whole, keys, scale,
        HEAD_WIDTH, WIDTH, KEYS, CAUSAL, False, PRECISION,
    )  # fmt: skip
    mixed, row_sum, row_max = _attend(
        mixed, row_sum, row_max, query, key_base, value_base, rows, whole, last, keys, scale,
        HEAD_WIDTH, WIDTH, KEYS, CAUSAL, True, PRECISION,
    )  # fmt: skip
    store_tile(output_base, rows, queries, mixed / row_sum[:, None], HEAD_WIDTH, WIDTH)
    tl.store(log_sum_base + rows, row_max + tl.log2(row_sum), mask=rows < queries)
