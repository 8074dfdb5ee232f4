"""FlashAttention's backward pass, in Triton: one kernel gives dK and dV, one dQ."""

# The import hook of the tests leaves alone what is marked `no_type_check`: Triton reads these functions' source.
# Upper case, as Triton has it, is what a kernel is compiled for.
# ruff: noqa: N803
from typing import no_type_check

import triton
import triton.language as tl

from .tiles import add_product, load_tile, product, store_tile


@triton.jit
@no_type_check
def along(
    output_base,
    upstream_base,
    along_base,
    count,
    HEAD_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Give D = rowsum(dO ∘ O), once for both of the kernels that need it."""
    rows = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    output = load_tile(output_base, rows, count, HEAD_WIDTH, WIDTH, True).to(tl.float32)
    upstream = load_tile(upstream_base, rows, count, HEAD_WIDTH, WIDTH, True).to(tl.float32)
    tl.store(along_base + rows, tl.sum(output * upstream, 1), mask=rows < count)


@triton.jit
@no_type_check
def _gather(
    key_sum,
    value_sum,
    key,
    value,
    query_base,
    upstream_base,
    log_sum_base,
    along_base,
    columns,
    first,
    last,
    queries,
    scale,
    HEAD_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to dK and dV what the queries from `first` to `last` say; tiles are turned, a row for each key."""
    for start in range(first, last, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        query = load_tile(query_base, rows, queries, HEAD_WIDTH, WIDTH, MASKED)
        upstream = load_tile(upstream_base, rows, queries, HEAD_WIDTH, WIDTH, MASKED)
        if MASKED:
            # A query that is not there is 0, as is its gradient: it adds nothing.
            log_sum = tl.load(log_sum_base + rows, mask=rows < queries, other=0.0)
            along = tl.load(along_base + rows, mask=rows < queries, other=0.0)
        else:
            log_sum = tl.load(log_sum_base + rows)
            along = tl.load(along_base + rows)
        weights = tl.exp2(product(key, tl.trans(query), PRECISION) * scale - log_sum[None, :])
        if MASKED and CAUSAL:
            weights = tl.where(columns[:, None] <= rows[None, :], weights, 0.0)
        value_sum = add_product(value_sum, weights.to(upstream.dtype), upstream, PRECISION)
        weights_gradient = product(value, tl.trans(upstream), PRECISION)
        scores_gradient = weights * (weights_gradient - along[None, :])
        key_sum = add_product(key_sum, scores_gradient.to(query.dtype), query, PRECISION)
    return key_sum, value_sum


@triton.jit
@no_type_check
def backward_keys(
    query_base,
    key_base,
    value_base,
    upstream_base,
    log_sum_base,
    along_base,
    key_gradient_base,
    value_gradient_base,
    queries,
    keys,
    scale,
    natural_scale,
    HEAD_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Give dK and dV of a block of keys."""
    blocks = tl.cdiv(keys, KEYS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    query_base += head * queries * HEAD_WIDTH
    upstream_base += head * queries * HEAD_WIDTH
    log_sum_base += head * queries
    along_base += head * queries
    columns = block * KEYS + tl.arange(0, KEYS)
    key = load_tile(key_base + head * keys * HEAD_WIDTH, columns, keys, HEAD_WIDTH, WIDTH, True)
    value = load_tile(value_base + head * keys * HEAD_WIDTH, columns, keys, HEAD_WIDTH, WIDTH, True)
    key_sum = tl.zeros([KEYS, WIDTH], tl.float32)
    value_sum = tl.zeros([KEYS, WIDTH], tl.float32)
    whole = queries // QUERIES * QUERIES
    begin = 0
    if CAUSAL:
        # First the blocks on the diagonal; keys see nothing of earlier queries.
        first = block * KEYS // QUERIES * QUERIES
        begin = tl.minimum(tl.cdiv((block + 1) * KEYS, QUERIES) * QUERIES, whole)
        key_sum, value_sum = _gather(
            key_sum, value_sum, key, value, query_base, upstream_base, log_sum_base, along_base, columns,
            first, begin, queries, scale, HEAD_WIDTH, WIDTH, QUERIES, CAUSAL, True, PRECISION,
        )  # fmt: skip
    key_sum, value_sum = _gather(
        key_sum, value_sum, key, value, query_base, upstream_base, log_sum_base, along_base, columns,
        begin, whole, queries, scale, HEAD_WIDTH, WIDTH, QUERIES, CAUSAL, False, PRECISION,
    )  # fmt: skip
    key_sum, value_sum = _gather(
        key_sum, value_sum, key, value, query_base, upstream_base, log_sum_base, along_base, columns,
        whole, queries, queries, scale, HEAD_WIDTH, WIDTH, QUERIES, CAUSAL, True, PRECISION,
    )  # fmt: skip
    key_sum *= natural_scale
    store_tile(key_gradient_base + head * keys * HEAD_WIDTH, columns, keys, key_sum, HEAD_WIDTH, WIDTH)
    store_tile(value_gradient_base + head * keys * HEAD_WIDTH, columns, keys, value_sum, HEAD_WIDTH, WIDTH)


@triton.jit
@no_type_check
def _descend(
    query_sum,
    query,
    upstream,
    log_sum,
    along,
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
    """Add to dQ what the keys from `first` to `last` say."""
    for start in range(first, last, KEYS):
        columns = start + tl.arange(0, KEYS)
        key = load_tile(key_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        value = load_tile(value_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        weights = tl.exp2(product(query, tl.trans(key), PRECISION) * scale - log_sum[:, None])
        if MASKED:
            seen = columns[None, :] < keys
            if CAUSAL:
                seen = seen & (columns[None, :] <= rows[:, None])
            weights = tl.where(seen, weights, 0.0)
        weights_gradient = product(upstream, tl.trans(value), PRECISION)
        scores_gradient = weights * (weights_gradient - along[:, None])
        query_sum = add_product(query_sum, scores_gradient.to(key.dtype), key, PRECISION)
    return query_sum


@triton.jit
@no_type_check
def backward_queries(
    query_base,
    key_base,
    value_base,
    upstream_base,
    log_sum_base,
    along_base,
    query_gradient_base,
    queries,
    keys,
    scale,
    natural_scale,
    HEAD_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Give dQ of a block of queries."""
    blocks = tl.cdiv(queries, QUERIES)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    block = blocks - 1 - tl.program_id(0) % blocks
    key_base += head * keys * HEAD_WIDTH
    value_base += head * keys * HEAD_WIDTH
    rows = block * QUERIES + tl.arange(0, QUERIES)
    query = load_tile(query_base + head * queries * HEAD_WIDTH, rows, queries, HEAD_WIDTH, WIDTH, True)
    upstream = load_tile(upstream_base + head * queries * HEAD_WIDTH, rows, queries, HEAD_WIDTH, WIDTH, True)
    log_sum = tl.load(log_sum_base + head * queries + rows, mask=rows < queries, other=0.0)
    along = tl.load(along_base + head * queries + rows, mask=rows < queries, other=0.0)
    query_sum = tl.zeros([QUERIES, WIDTH], tl.float32)
    if CAUSAL:
        whole = block * QUERIES // KEYS * KEYS
        last = tl.minimum(keys, (block + 1) * QUERIES)
    else:
        whole = keys // KEYS * KEYS
        last = keys
    query_sum = _descend(
        query_sum, query, upstream, log_sum, along, key_base, value_base, rows, 0, whole, keys, scale,
        HEAD_WIDTH, WIDTH, KEYS, CAUSAL, False, PRECISION,
    )  # fmt: skip
    query_sum = _descend(
        query_sum, query, upstream, log_sum, along, key_base, value_base, rows, whole, last, keys, scale,
        HEAD_WIDTH, WIDTH, KEYS, CAUSAL, True, PRECISION,
    )  # fmt: skip
    query_sum *= natural_scale
    store_tile(query_gradient_base + head * queries * HEAD_WIDTH, rows, queries, query_sum, HEAD_WIDTH, WIDTH)
