"""FlashAttention's fused kernels, in Triton.

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


@triton.jit
@no_type_check
def _load(base, rows, count, HEAD_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CHECKED: tl.constexpr):
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
def _store(base, rows, count, block, HEAD_WIDTH: tl.constexpr, WIDTH: tl.constexpr):
    inside = tl.arange(0, WIDTH)
    places = base + rows[:, None] * HEAD_WIDTH + inside[None, :]
    block = block.to(base.dtype.element_ty)
    tl.store(places, block, mask=(rows[:, None] < count) & (inside[None, :] < HEAD_WIDTH))


@triton.jit
@no_type_check
def _add_product(total, left, right, PRECISION: tl.constexpr):
    """Add left · right; "widened" turns both to 32 bits, since the interpreter multiplies the bits of bfloat16."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
@no_type_check
def _product(left, right, PRECISION: tl.constexpr):
    """Give left · right in 32 bits."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision=PRECISION)


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
        key = _load(key_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        scores = _product(query, tl.trans(key), PRECISION) * scale
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
        value = _load(value_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        mixed = _add_product(mixed, weights.to(value.dtype), value, PRECISION)
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
    query = _load(query_base, rows, queries, HEAD_WIDTH, WIDTH, True)
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
    _store(output_base, rows, queries, mixed / row_sum[:, None], HEAD_WIDTH, WIDTH)
    tl.store(log_sum_base + rows, row_max + tl.log2(row_sum), mask=rows < queries)


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
    output = _load(output_base, rows, count, HEAD_WIDTH, WIDTH, True).to(tl.float32)
    upstream = _load(upstream_base, rows, count, HEAD_WIDTH, WIDTH, True).to(tl.float32)
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
        query = _load(query_base, rows, queries, HEAD_WIDTH, WIDTH, MASKED)
        upstream = _load(upstream_base, rows, queries, HEAD_WIDTH, WIDTH, MASKED)
        if MASKED:
            # A query that is not there is 0, as is its gradient: it adds nothing.
            log_sum = tl.load(log_sum_base + rows, mask=rows < queries, other=0.0)
            along = tl.load(along_base + rows, mask=rows < queries, other=0.0)
        else:
            log_sum = tl.load(log_sum_base + rows)
            along = tl.load(along_base + rows)
        weights = tl.exp2(_product(key, tl.trans(query), PRECISION) * scale - log_sum[None, :])
        if MASKED and CAUSAL:
            weights = tl.where(columns[:, None] <= rows[None, :], weights, 0.0)
        value_sum = _add_product(value_sum, weights.to(upstream.dtype), upstream, PRECISION)
        weights_gradient = _product(value, tl.trans(upstream), PRECISION)
        scores_gradient = weights * (weights_gradient - along[None, :])
        key_sum = _add_product(key_sum, scores_gradient.to(query.dtype), query, PRECISION)
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
    key = _load(key_base + head * keys * HEAD_WIDTH, columns, keys, HEAD_WIDTH, WIDTH, True)
    value = _load(value_base + head * keys * HEAD_WIDTH, columns, keys, HEAD_WIDTH, WIDTH, True)
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
    _store(key_gradient_base + head * keys * HEAD_WIDTH, columns, keys, key_sum, HEAD_WIDTH, WIDTH)
    _store(value_gradient_base + head * keys * HEAD_WIDTH, columns, keys, value_sum, HEAD_WIDTH, WIDTH)


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
        key = _load(key_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        value = _load(value_base, columns, keys, HEAD_WIDTH, WIDTH, MASKED)
        weights = tl.exp2(_product(query, tl.trans(key), PRECISION) * scale - log_sum[:, None])
        if MASKED:
            seen = columns[None, :] < keys
            if CAUSAL:
                seen = seen & (columns[None, :] <= rows[:, None])
            weights = tl.where(seen, weights, 0.0)
        weights_gradient = _product(upstream, tl.trans(value), PRECISION)
        scores_gradient = weights * (weights_gradient - along[:, None])
        query_sum = _add_product(query_sum, scores_gradient.to(key.dtype), key, PRECISION)
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
    query = _load(query_base + head * queries * HEAD_WIDTH, rows, queries, HEAD_WIDTH, WIDTH, True)
    upstream = _load(upstream_base + head * queries * HEAD_WIDTH, rows, queries, HEAD_WIDTH, WIDTH, True)
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
    _store(query_gradient_base + head * queries * HEAD_WIDTH, rows, queries, query_sum, HEAD_WIDTH, WIDTH)
