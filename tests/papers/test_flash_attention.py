"""FlashAttention in plain PyTorch against attention that holds all scores, and what it reads and writes."""

import math
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from allyouneed.nn import Attention, AttentionPattern, attention_pattern
from allyouneed.papers.alibi import ALiBi
from allyouneed.papers.flash_attention import (
    SlowMemory,
    Tile,
    TiledAttention,
    butterfly,
    flash_attention,
    standard_attention,
    standard_attention_backward,
)
from allyouneed.training import peak_tensor_bytes


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attention as PyTorch's math kernel computes it; zeros for a query that sees nothing."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Give the output, and the gradients of the inputs for one and the same gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    upstream = numbers(*output.shape, seed=99).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-10) -> None:
    """Differences are measured by the largest entry: rounding of a sum is relative to its terms."""
    for actual, expected in zip(ours, theirs, strict=True):
        largest = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(actual / largest, expected / largest, rtol=0, atol=tolerance)


# Exactness


@settings(deadline=None, max_examples=80)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 41),
    keys=st.integers(1, 41),
    width=st.integers(1, 17),
    value_width=st.integers(1, 9),
    tile=st.builds(Tile, st.integers(1, 50), st.integers(1, 50)),
    mask=st.sampled_from(["none", "causal", "padding", "bool", "float", "empty rows", "causal and padding"]),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_values_and_gradients_are_those_of_dense_attention(
    batch, heads, queries, keys, width, value_width, tile, mask, size
):
    """Odd lengths, masks, widths and tiles; at size 30 a softmax without a maximum overflows."""
    causal = mask.startswith("causal")
    keys = queries if causal else keys
    query, key = numbers(batch, heads, queries, width) * size, numbers(batch, heads, keys, width, seed=1) * size
    value = numbers(batch, heads, keys, value_width, seed=2)
    chance = torch.rand(batch, heads, queries, keys, generator=torch.Generator().manual_seed(3))
    attn_mask = {
        "padding": chance[:, :1, :1] < 0.7,
        "causal and padding": chance[:, :1, :1] < 0.7,
        "bool": chance[:1] < 0.5,
        "float": chance.double() * 5 - 4,
        "empty rows": (chance < 0.5) & (chance[..., :1] < 0.5),
    }.get(mask)
    ours = with_gradients(
        lambda *inputs: flash_attention(*inputs, attn_mask=attn_mask, is_causal=causal, tile=tile), query, key, value
    )
    if mask == "causal and padding":
        attn_mask = attn_mask & torch.ones(queries, keys, dtype=torch.bool).tril()
    theirs = with_gradients(lambda *inputs: dense(*inputs, attn_mask, is_causal=mask == "causal"), query, key, value)
    same(ours, theirs)


def test_scores_that_overflow_without_a_running_maximum():
    query, key, value = numbers(1, 2, 33, 8) * 40, numbers(1, 2, 47, 8, seed=1) * 40, numbers(1, 2, 47, 8, seed=2)
    scores = query @ key.mT / math.sqrt(8)
    assert not torch.isfinite(scores.exp().sum(-1)).all()
    # Maxima that rise, that fall, and that come in the last tile.
    for order in (scores[0, 0, 0].argsort(), scores[0, 0, 0].argsort(descending=True), torch.arange(47)):
        inputs = query, key[:, :, order], value[:, :, order]
        ours = with_gradients(lambda *inputs: flash_attention(*inputs, tile=Tile(5, 6)), *inputs)
        assert all(tensor.isfinite().all() for tensor in ours)
        same(ours, with_gradients(dense, *inputs))


def test_queries_that_see_nothing():
    query, key, value = (numbers(1, 1, 6, 4, seed=seed) for seed in range(3))
    seen = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    seen[..., 2, :] = seen[..., 5, :] = False
    for mask in (seen, torch.zeros(1, 1, 6, 6, dtype=torch.float64).masked_fill(~seen, -math.inf)):
        output, query_gradient, key_gradient, _ = with_gradients(
            lambda *inputs, mask=mask: flash_attention(*inputs, attn_mask=mask, tile=Tile(2, 3)), query, key, value
        )
        assert (output[..., [2, 5], :] == 0).all() and (query_gradient[..., [2, 5], :] == 0).all()
        assert key_gradient.isfinite().all() and (output[..., 0, :] != 0).all()


@pytest.mark.parametrize("tile", [Tile(1, 2), Tile(3, 2), Tile(9, 9)])
@pytest.mark.parametrize("causal", [True, False])
def test_backward_pass_against_finite_differences(tile, causal):
    leaves = [numbers(1, 1, 4, 2, seed=seed).requires_grad_() for seed in range(3)]
    mask = torch.tensor([True, False, True, True])[None, None, None]
    assert torch.autograd.gradcheck(lambda *inputs: flash_attention(*inputs, is_causal=causal, tile=tile), leaves)
    assert torch.autograd.gradcheck(
        lambda *inputs: flash_attention(*inputs, attn_mask=mask, is_causal=causal, scale=0.3, tile=tile), leaves
    )


def test_scale():
    inputs = [numbers(1, 1, 7, 4, seed=seed) for seed in range(3)]
    same(
        with_gradients(lambda *inputs: flash_attention(*inputs, scale=2.5), *inputs),
        with_gradients(lambda *inputs: dense(*inputs, scale=2.5), *inputs),
    )
    assert (flash_attention(*inputs, scale=0.0) - inputs[2].mean(-2, keepdim=True)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_no_worse_than_that_of_dense_attention(dtype):
    inputs = [numbers(2, 2, 130, 32, seed=seed).to(dtype) for seed in range(3)]
    tiled = with_gradients(lambda *inputs: flash_attention(*inputs, tile=Tile(32, 48)), *inputs)
    plain = with_gradients(dense, *inputs)
    exact = with_gradients(dense, *(tensor.double() for tensor in inputs))
    for ours, theirs, truth in zip(tiled, plain, exact, strict=True):
        assert ours.dtype == dtype
        assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm()


def test_strided_inputs_and_gradients():
    stored = [numbers(2, 9, 3, 5, seed=seed) for seed in range(3)]
    ours, theirs = (
        with_gradients(lambda *inputs, of=of: of(*(tensor.transpose(1, 2) for tensor in inputs)), *stored)
        for of in (lambda *inputs: flash_attention(*inputs, is_causal=True, tile=Tile(4, 2)),
                   lambda *inputs: dense(*inputs, is_causal=True))
    )  # fmt: skip
    same(ours, theirs)
    leaf = numbers(1, 1, 4, 2).requires_grad_()
    flash_attention(leaf, leaf, leaf).sum().backward()  # A gradient without strides of its own.
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_only_first_derivatives_and_none_of_what_needs_none():
    query, key, value = (numbers(1, 1, 3, 2, seed=seed) for seed in range(3))
    flash_attention(query, key.requires_grad_(), value).sum().backward()
    assert key.grad is not None and query.grad is None and value.grad is None
    (gradient,) = torch.autograd.grad(flash_attention(query, key, value).square().sum(), key, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_does_not_reach_into_the_tiles():
    inputs = [numbers(1, 2, 40, 16, seed=seed, dtype=torch.float32) for seed in range(3)]
    expected = with_gradients(flash_attention, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        same(with_gradients(flash_attention, *inputs), expected, 0.0)


# Dropout


def test_dropped_weights_are_drawn_again_in_the_backward_pass():
    """What was dropped is read off attention to one-hot values; the same draw is then made for others."""
    length, tile = 13, Tile(4, 5)
    query, key, value = (numbers(2, 3, length, 6, seed=seed) for seed in range(3))

    def dropping(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(5)
        return flash_attention(query, key, value, dropout_p=0.4, is_causal=True, tile=tile)

    one_hot = torch.eye(length, dtype=torch.float64).expand(2, 3, -1, -1)
    kept = dropping(query, key, one_hot) / dense(query, key, one_hot, is_causal=True)
    kept = kept.nan_to_num(0.0)  # Above the diagonal.
    below = torch.ones(length, length).tril().bool()
    assert (
        torch.isclose(kept, torch.tensor([0.0, 1 / 0.6], dtype=torch.float64)[:, None, None, None, None]).any(0).all()
    )
    assert 0.5 < float((kept[..., below] > 0).double().mean()) < 0.7

    def dense_dropping(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.mT / math.sqrt(6)).masked_fill(~below, -math.inf)
        return (scores.softmax(-1) * kept) @ value

    same(with_gradients(dropping, query, key, value), with_gradients(dense_dropping, query, key, value))


def test_dropout_keeps_the_mean_follows_the_seed_and_ends_with_training():
    query, key = numbers(1, 1, 200, 4) * 0, numbers(1, 1, 400, 4)
    value = torch.ones(1, 1, 400, 1, dtype=torch.float64)
    torch.manual_seed(0)
    first, second = (flash_attention(query, key, value, dropout_p=0.25, tile=Tile(64, 64)) for _ in range(2))
    assert abs(float(first.mean()) - 1) < 0.01 and not torch.equal(first, second)
    # A weight that is kept is 4/3 of 1/400; those of a row vary by its binomial.
    assert float(first.std()) == pytest.approx(math.sqrt(400 * 0.25 * 0.75) / 300, rel=0.2)
    torch.manual_seed(0)
    assert torch.equal(flash_attention(query, key, value, dropout_p=0.25, tile=Tile(64, 64)), first)
    module = Attention(8, 2, dropout=0.5, kernel=flash_attention).double()
    hidden = numbers(1, 9, 8)
    assert not torch.equal(module(hidden), module(hidden))
    module.eval()
    assert torch.equal(module(hidden), module(hidden))


# Block-sparse attention


@pytest.mark.parametrize(("queries", "keys", "tile"), [(24, 24, Tile(4, 4)), (23, 17, Tile(5, 3)), (9, 30, Tile(9, 7))])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_block_sparse_attention_is_dense_attention_with_the_mask_of_its_blocks(queries, keys, tile, share):
    inputs = numbers(2, 2, queries, 6), numbers(2, 2, keys, 6, seed=1), numbers(2, 2, keys, 6, seed=2)
    shape = math.ceil(queries / tile.queries), math.ceil(keys / tile.keys)
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < share
    mask = blocks.repeat_interleave(tile.queries, 0).repeat_interleave(tile.keys, 1)[:queries, :keys]
    same(
        with_gradients(lambda *inputs: flash_attention(*inputs, tile=tile, block_mask=blocks), *inputs),
        with_gradients(lambda *inputs: dense(*inputs, mask), *inputs),
    )


def test_block_sparse_with_a_causal_mask():
    inputs = [numbers(1, 2, 22, 4, seed=seed) for seed in range(3)]
    mask = butterfly(8)[:6, :6].repeat_interleave(4, 0).repeat_interleave(4, 1)[:22, :22]
    same(
        with_gradients(
            lambda *inputs: flash_attention(*inputs, tile=Tile(4, 4), block_mask=butterfly(8)[:6, :6], is_causal=True),
            *inputs,
        ),
        with_gradients(lambda *inputs: dense(*inputs, mask.tril()), *inputs),
    )


@pytest.mark.parametrize("blocks", [1, 2, 8, 64])
def test_butterfly(blocks):
    mask = butterfly(blocks)
    assert torch.equal(mask, mask.T) and mask.diagonal().all()
    assert (mask.sum(1) == 1 + math.log2(blocks)).all()
    # The product of its factors has no zeros: in log₂ n steps any block can be heard by any other.
    assert (torch.linalg.matrix_power(mask.double(), max(1, round(math.log2(blocks)))) > 0).all()


# Accesses to slow memory


@pytest.mark.parametrize(("length", "width", "tile"), [(64, 8, Tile(8, 16)), (30, 4, Tile(7, 9)), (5, 3, Tile(8, 8))])
def test_accesses_are_those_of_the_algorithm(length, width, tile):
    """Counted by hand: keys and values once; queries, output, sum and maximum once for every block of keys."""
    query, key, value = (numbers(1, 1, length, width, seed=seed).requires_grad_() for seed in range(3))
    memory, passes = SlowMemory(), math.ceil(length / tile.keys)
    output = flash_attention(query, key, value, tile=tile, memory=memory)
    assert memory.read == 2 * length * width + passes * length * (2 * width + 2)
    assert memory.written == passes * length * (width + 2)
    forward = memory.accesses
    output.sum().backward()
    # Q, O, dO, dQ, ℓ and m are read and dQ is written in every pass; dK and dV are written once.
    assert memory.accesses - forward == 4 * length * width + passes * length * (5 * width + 2)


def test_accesses_of_what_is_skipped_and_of_masks():
    inputs = [numbers(1, 1, 64, 4, seed=seed) for seed in range(3)]
    tile = Tile(8, 8)

    def accesses(**options: Any) -> int:
        flash_attention(*inputs, tile=tile, memory=(memory := SlowMemory()), **options)
        return memory.accesses

    once, a_tile = 2 * 64 * 4, 8 * (3 * 4 + 4)
    assert accesses() == once + 64 * a_tile
    assert accesses(is_causal=True) == once + 36 * a_tile
    assert accesses(block_mask=butterfly(8)) == once + 32 * a_tile
    assert accesses(attn_mask=torch.ones(1, 1, 1, 64, dtype=torch.bool)) == once + 64 * (a_tile + 8)
    assert accesses(attn_mask=torch.ones(64, 64, dtype=torch.bool)) == once + 64 * (a_tile + 64)


@pytest.mark.parametrize(("fast_memory", "width"), [(4096, 16), (16_384, 64), (65_536, 64), (65_536, 128), (1000, 30)])
def test_tiles_fit_into_fast_memory(fast_memory, width):
    """Theorem 1's premise, with the constants of Algorithm 1's block sizes."""
    tile = Tile.fitting(fast_memory, width)
    assert tile.keys == math.ceil(fast_memory / (4 * width)) and tile.queries == min(tile.keys, width)
    memory = SlowMemory()
    shapes = [(1, 1, 2 * tile.queries, width), *[(1, 1, 2 * tile.keys, width)] * 2]
    output = flash_attention(*(numbers(*shape).requires_grad_() for shape in shapes), tile=tile, memory=memory)
    # K and V take M/2, Q and O at most as much, scores at most M/4; beside them two numbers a query.
    assert 0.75 * fast_memory < memory.on_chip <= 1.25 * fast_memory + 8 * width
    output.sum().backward()
    assert memory.on_chip <= 2.5 * fast_memory + 16 * width


def test_standard_attention_and_its_accesses():
    length, width = 23, 6
    inputs = [numbers(2, 1, length, width, seed=seed) for seed in range(3)]
    memory, upstream = SlowMemory(), numbers(2, 1, length, width, seed=99)
    output, probabilities = standard_attention(inputs[0] / math.sqrt(width), inputs[1], inputs[2], memory)
    vectors, scores = 2 * length * width, 2 * length * length
    assert (memory.read, memory.written) == (3 * vectors + 2 * scores, vectors + 2 * scores)
    gradients = standard_attention_backward(
        inputs[0] / math.sqrt(width), inputs[1], inputs[2], probabilities, upstream, memory
    )
    assert memory.accesses == 12 * vectors + 11 * scores
    ours = [output, gradients[0] / math.sqrt(width), *gradients[1:]]
    same(ours, with_gradients(dense, *inputs))


# Memory


def extra_bytes(function: Callable[..., Tensor], length: int) -> int:
    """Give the peak of a forward and backward pass, beyond output, its gradient and the inputs' gradients."""
    leaves = [numbers(1, 2, length, 16, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(3)]
    upstream = torch.ones_like(leaves[0])
    peak = peak_tensor_bytes(lambda: function(*leaves).backward(upstream))
    return peak - 4 * upstream.numel() * 4


def test_extra_memory_is_linear_in_the_length():
    lengths, tile = (64, 128, 256), Tile(32, 32)
    tiled = [extra_bytes(lambda *inputs: flash_attention(*inputs, tile=tile), length) for length in lengths]
    # A sum and a maximum of each query of both heads; the tiles are the same at every length.
    assert tiled[1] - tiled[0] == 2 * 2 * 64 * 4 and tiled[2] - tiled[1] == 2 * 2 * 128 * 4
    plain = [extra_bytes(dense, length) for length in lengths]
    assert plain[2] - plain[1] > 3.5 * (plain[1] - plain[0]) > 3.5 * 2 * 4 * (128**2 - 64**2)


# The seam


@pytest.mark.parametrize("scheme", ["none", "alibi"])
@pytest.mark.parametrize("padded", [True, False])
def test_as_the_kernel_of_attention(scheme, padded):
    torch.manual_seed(0)
    theirs, ours = (
        Attention(24, 4, key_value_heads=2).double(),
        Attention(24, 4, key_value_heads=2, kernel=flash_attention).double(),
    )
    ours.load_state_dict(theirs.state_dict())
    hidden = numbers(2, 11, 24)
    pattern = AttentionPattern(causal=True)
    if padded or scheme == "alibi":
        present = torch.arange(11) < torch.tensor([[11], [7]]) if padded else None
        bias = ALiBi(4) if scheme == "alibi" else _no_positions()
        pattern = attention_pattern(bias, 11, 11, causal=True, present=present)
    same(
        with_gradients(lambda hidden: ours(hidden, pattern), hidden),
        with_gradients(lambda hidden: theirs(hidden, pattern), hidden),
    )
    same([ours(hidden[:, :3], source=hidden)], [theirs(hidden[:, :3], source=hidden)])


def _no_positions() -> nn.Module:
    from allyouneed.nn import PositionScheme

    return PositionScheme()


# What is refused


@pytest.fixture
def unhooked():
    """Without the tests' own check of shapes, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": numbers(1, 2, 6, 5)}, r"\(1, 2, 6, 4\), \(1, 2, 6, 5\), \(1, 2, 6, 4\) do not belong"),
        ({"value": numbers(1, 2, 7, 4)}, r"\(1, 2, 7, 4\) do not belong"),
        ({"key": numbers(1, 1, 6, 4), "value": numbers(1, 1, 6, 4)}, r"\(1, 1, 6, 4\) do not belong"),
        ({"key": numbers(1, 2, 6, 4).float()}, r"torch.float64, torch.float32 and torch.float64"),
        ({"key": numbers(1, 2, 8, 4), "value": numbers(1, 2, 8, 4), "is_causal": True}, "6 queries to 8 keys"),
        ({"dropout_p": 1.0}, r"dropout_p is 1.0: it must be at least 0 and below 1"),
        ({"dropout_p": -0.1}, r"dropout_p is -0.1"),
        ({"attn_mask": torch.ones(3, 6, dtype=torch.bool)}, r"\(1, 1, 3, 6\) does not broadcast to \(1, 2, 6, 6\)"),
        ({"attn_mask": torch.ones(1, 1, 1, 1, 6)}, r"\(1, 1, 1, 1, 6\) does not broadcast"),
        ({"attn_mask": torch.zeros(6, 6, requires_grad=True)}, "the mask wants a gradient"),
        ({"attn_mask": torch.ones(6, 6, dtype=torch.int64)}, "torch.int64"),
        ({"block_mask": torch.ones(2, 2).bool(), "tile": Tile(2, 3)}, r"tiles of 2 by 3 are 3 by 2 blocks"),
    ],
)
def test_bad_input_is_refused_with_its_values(options, message):
    inputs = {name: options.pop(name, numbers(1, 2, 6, 4)) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        flash_attention(*inputs.values(), **options)


def test_bad_sizes_are_refused_with_their_values():
    with pytest.raises(ValueError, match="a tile of 0 queries and 3 keys"):
        Tile(0, 3)
    with pytest.raises(ValueError, match="fast memory for 31 numbers cannot hold a vector of width 32"):
        Tile.fitting(31, 32)
    with pytest.raises(ValueError, match="a block mask of 0 blocks"):
        butterfly(0)


def test_no_tokens():
    query, nothing = numbers(1, 2, 3, 4).requires_grad_(), numbers(1, 2, 0, 4).requires_grad_()
    assert flash_attention(nothing, query, query).shape == (1, 2, 0, 4)
    output = flash_attention(query, nothing, nothing)
    output.sum().backward()
    assert (output == 0).all() and (query.grad == 0).all()


def test_the_passes_by_themselves():
    """The statistics of Theorem 1's proof: m is the largest score, ℓ the sum of exponentials of what it leaves."""
    query, key, value = (numbers(1, 1, 20, 4, seed=seed) for seed in range(3))
    output, row_sum, row_max = TiledAttention(Tile(3, 6), scale=0.5).forward(query, key, value)
    scores = 0.5 * query @ key.mT
    same([row_max, row_sum], [scores.amax(-1, keepdim=True), (scores - row_max).exp().sum(-1, keepdim=True)], 1e-13)
    same([output], [scores.softmax(-1) @ value], 1e-13)
