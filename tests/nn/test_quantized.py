"""Quantised linear layers against their dequantised weights: by the packed kernel, without it, and inside models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    EncoderDecoder,
    GatedFeedForward,
    Int4Linear,
    Int8Linear,
    PreNorm,
    QuantizedEmbedding,
    RMSNorm,
    RotaryPositions,
    join_projections,
    quantize_int8,
    quantized,
    tie_quantized,
)
from allyouneed.papers.transformer import transformer

packed = pytest.mark.skipif(quantized.packed_kernel() != "packed 4-bit", reason="no packed kernel on this processor")


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def four_bits(rows: int, columns: int, group: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Give integers, scales and minima as a GGUF file has them, in 16 bits."""
    quants = torch.randint(0, 16, (rows, columns), generator=drawn(seed), dtype=torch.uint8)
    scale = torch.rand(rows, columns // group, generator=drawn(seed + 1)).half() / 8
    return quants, scale, (-8 * scale.float() + torch.rand(scale.shape, generator=drawn(seed + 2)) / 10).half()


def spread(values: Tensor, group: int = 32) -> Tensor:
    return values.double().repeat_interleave(group, 1)


def test_weights_are_quant_times_scale_plus_minimum():
    quants, scale, minimum = four_bits(6, 64)
    exact = quants.double() * spread(scale) + spread(minimum)
    found = Int4Linear.from_blocks(quants, scale, minimum)
    torch.testing.assert_close(found.weight.double(), exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        Int4Linear.from_blocks(quants, scale).weight.double(), exact - spread(minimum), rtol=1e-6, atol=1e-7
    )
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(found.rows(rows), found.weight[rows])
    signed = torch.arange(-128, 128, dtype=torch.int8).repeat(6, 1)[:, :64]
    torch.testing.assert_close(
        Int8Linear.from_blocks(signed, scale).weight.double(), signed.double() * spread(scale), rtol=1e-6, atol=1e-7
    )


@packed
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (16, 256), (70, 128), (1, 128)])
def test_the_packed_kernel_has_the_layout_that_is_claimed(rows: int, columns: int, group: int):
    """The kernel's weights, read off from unit vectors, are the formula's: scale and zero rounded, then the sum."""
    quants, scale, minimum = four_bits(rows, columns, group)
    four = Int4Linear.from_blocks(quants, scale, minimum)
    assert four.kernel == "packed 4-bit"
    units = torch.eye(columns)
    with torch.inference_mode():
        found = torch.cat([four(units[start : start + 50]) for start in range(0, columns, 50)]).T
    rounded = scale.bfloat16().float().repeat_interleave(group, 1)
    zero = (minimum.float() + 8 * scale.float()).bfloat16().float().repeat_interleave(group, 1)
    assert torch.equal(found, ((quants.float() - 8) * rounded + zero).bfloat16().float())


@packed
def test_both_halves_of_eight_bits_reach_the_kernel():
    signed = torch.arange(-128, 128, dtype=torch.int8).repeat(3, 1)
    scale = torch.rand(3, 8, generator=drawn(4)).bfloat16()
    eight = Int8Linear.from_blocks(signed, scale)
    units = torch.eye(256)
    with torch.inference_mode():
        found = torch.cat([eight(units[start : start + 16]) for start in range(0, 256, 16)]).T
    exact = signed.float() * scale.float().repeat_interleave(32, 1)
    # Two terms of 4 bits, each rounded to the 8 bits of bfloat16, then their sum.
    assert bool(((found - exact).abs() <= 2**-7 * exact.abs() + 2**-7 * scale.float().repeat_interleave(32, 1)).all())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64), (200, 64), (0, 64)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("without_kernel", [False, True], ids=["", "no kernel"])
def test_maps_as_the_dequantised_weights_do(
    shape: tuple[int, ...], bits: int, bias: bool, without_kernel: bool, monkeypatch: pytest.MonkeyPatch
):
    if without_kernel:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    quants, scale, minimum = four_bits(48, 64)
    offset = torch.randn(48, generator=drawn(3)) if bias else None
    if bits == 4:
        linear = Int4Linear.from_blocks(quants, scale, minimum, offset)
    else:
        linear = Int8Linear.from_blocks(quants.to(torch.int8) * 8 - 60, scale, offset)
    assert linear.kernel == ("dequantised" if without_kernel else quantized.packed_kernel())
    assert linear.kernel in repr(linear)
    hidden = torch.randn(shape, generator=drawn(9))
    expected = F.linear(hidden, linear.weight, offset)
    found = linear(hidden)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    # Each of 64 terms is off by a few roundings to the 8 bits of bfloat16.
    assert float((found - expected).norm()) <= 0.01 * float(expected.norm())
    assert linear(hidden.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_may_lie_in_memory_as_they_like(dtype: torch.dtype):
    linear = Int8Linear.from_weight(torch.randn(32, 64, generator=drawn(0)))
    wide = torch.randn(6, 5, 128, generator=drawn(1)).to(dtype)
    for hidden in (wide[..., :64], wide[:, 0, 64:], wide.transpose(0, 1)[..., ::2], wide[0, 0, :1].expand(3, 64)):
        assert torch.equal(linear(hidden), linear(hidden.clone(memory_format=torch.contiguous_format)))


def test_a_gradient_of_the_input_is_exact():
    linear = Int8Linear.from_weight(torch.randn(32, 64, generator=drawn(0)))
    hidden = torch.randn(3, 64, generator=drawn(1), requires_grad=True)
    (gradient,) = torch.autograd.grad(linear(hidden).sum(), hidden)
    torch.testing.assert_close(gradient, linear.weight.sum(0).expand(3, -1))


def test_eight_bits_keep_weights_to_half_a_step():
    weight = torch.randn(40, 96, generator=drawn(0)) * torch.logspace(-6, 3, 40)[:, None]
    weight[3] = 0
    linear = Int8Linear.from_weight(weight)
    largest = weight.unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, 1)
    # Half a step, and the largest of a group may be cut by the rounding of its scale.
    assert bool(((linear.weight - weight).abs() <= largest * (0.5 / 127 + 2**-8)).all())
    assert not linear.weight[3].any()


def test_every_group_uses_the_range_of_eight_bits():
    # Groups of very different sizes, and one of zeros.
    weight = torch.randn(40, 96, generator=drawn(4)) * torch.tensor([1e-3, 1.0, 50.0]).repeat_interleave(32)
    weight[2, :32] = 0
    largest = Int8Linear.from_weight(weight).quants.unflatten(1, (-1, 32)).abs().amax(-1)
    # The scale's own rounding takes one of 127 at the most.
    assert torch.equal(largest >= 126, weight.unflatten(1, (-1, 32)).abs().amax(-1) > 0)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 64), (3, 2), None, None], r"scales of shape \(3, 2\) do not fit integers of shape \(2, 64\)"),
        ([(2, 64), (2, 3), None, None], r"scales of shape \(2, 3\) do not fit"),
        ([(2, 64), (2, 0), None, None], r"scales of shape \(2, 0\) do not fit"),
        ([(2, 64), (2, 4), None, None], "groups of 16 weights"),
        ([(2, 64), (2, 2), (2, 1), None], r"minima of shape \(2, 1\)"),
        ([(2, 64), (2, 2), None, (3,)], r"bias of shape \(3,\) does not fit 2 rows"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: list[tuple[int, ...] | None], message: str):
    # By the constructor, since the annotations of the other ways in are enforced here.
    quants, *rest = [None if shape is None else torch.ones(shape) for shape in shapes]
    assert quants is not None
    with pytest.raises(ValueError, match=message):
        Int4Linear(quants.to(torch.uint8), *rest)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="integer 16 does not fit into 4 bits"):
        Int4Linear.from_blocks(torch.full((2, 64), 16).to(torch.uint8), torch.ones(2, 2))
    with pytest.raises(ValueError, match="48 columns cannot be quantised in groups of 32"):
        Int8Linear.from_weight(torch.ones(2, 48))
    with pytest.raises(ValueError, match="row 1 of the weight has values that are not finite"):
        Int8Linear.from_weight(torch.tensor([1.0, torch.nan])[:, None].expand(2, 64))


def decoder(tied: bool = True) -> Decoder:
    torch.manual_seed(0)
    blocks = [
        Block(
            PreNorm(Attention(64, 4, key_value_heads=2, bias=False), RMSNorm(64)),
            PreNorm(GatedFeedForward(64, 96), RMSNorm(64)),
        )
        for _ in range(2)
    ]
    return Decoder(50, 64, blocks, positions=RotaryPositions(16), norm=RMSNorm(64), tied=tied).eval()


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_decoder_is_near_the_one_it_was_made_of(tied: bool):
    model = decoder(tied)
    tokens = torch.randint(50, (2, 9), generator=drawn(1))
    expected = model(tokens)
    smaller = quantize_int8(copy.deepcopy(model))
    assert not [module for module in smaller.modules() if isinstance(module, nn.Linear)]
    assert isinstance(smaller.embedding, QuantizedEmbedding) == tied
    assert not any(parameter.ndim > 1 for parameter in smaller.parameters()) or not tied
    found = smaller(tokens)
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert not torch.equal(found, expected)
    # One token at a time, through the cache, by the packed kernel and the joined layers.
    cache = smaller.new_cache()
    steps = torch.cat([smaller(tokens[:, at : at + 1], cache=cache) for at in range(9)], 1)
    torch.testing.assert_close(steps, found, rtol=0.05, atol=0.05 * float(found.abs().max()))
    again = copy.deepcopy(smaller)
    assert torch.equal(again(tokens), found)


@torch.no_grad()
def test_joining_changes_nothing_but_the_number_of_calls():
    apart = decoder()
    for module in apart.modules():
        if isinstance(module, Attention):
            for name in ("query", "key", "value"):
                setattr(
                    module,
                    name,
                    Int8Linear.from_weight(
                        getattr(module, name).weight, torch.randn(1).expand(getattr(module, name).out_features)
                    ),
                )
        if isinstance(module, GatedFeedForward):
            quants, scale, minimum = four_bits(96, 64)
            module.gate = Int4Linear.from_blocks(quants, scale, minimum)
            module.inner = Int4Linear.from_blocks(15 - quants, scale)
    tokens = torch.randint(50, (2, 5), generator=drawn(1))
    expected = apart(tokens)
    joined = join_projections(copy.deepcopy(apart))
    assert torch.equal(joined(tokens), expected)
    assert sum(isinstance(module, Int8Linear | Int4Linear) for module in joined.modules()) == 4
    # Joined again, and layers that are not quantised alike: left as they are.
    assert torch.equal(join_projections(joined)(tokens), expected)
    assert join_projections(decoder()).blocks[0].attention.sublayer.joint is None


@torch.no_grad()
def test_attention_to_a_source_is_joined_too():
    torch.manual_seed(0)
    model: EncoderDecoder = transformer(40, width=64, layers=1, heads=4, hidden=64).eval()
    source, target = torch.randint(40, (2, 7)), torch.randint(40, (2, 5))
    expected = model(source, target)
    found = quantize_int8(model)(source, target)
    assert float((found - expected).norm() / expected.norm()) < 0.03
    state = model.start(source)
    for at in range(5):
        logits = model.next_logits(target[:, at], state)
    torch.testing.assert_close(logits, found[:, -1], rtol=0.05, atol=0.05 * float(found.abs().max()))


def test_a_table_must_fit_the_decoder():
    table = Int8Linear.from_weight(torch.randn(50, 32))
    with pytest.raises(ValueError, match=r"shape \(50, 32\) cannot replace one of \(50, 64\)"):
        tie_quantized(decoder(), table)
    with pytest.raises(ValueError, match="not tied"):
        tie_quantized(decoder(tied=False), Int8Linear.from_weight(torch.randn(50, 64)))


def test_a_model_that_cannot_be_quantised_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 64))
    with pytest.raises(ValueError, match=r"multiple of 32 .* \['1 \(40 columns\)'\]"):
        quantize_int8(model)
    assert type(model[0]) is nn.Linear
