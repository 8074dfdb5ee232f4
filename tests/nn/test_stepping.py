"""A token at a time through quantised blocks: the shorter way gives what the parts give, and only where it may."""

import copy

import pytest
import torch
from torch import nn

from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    GatedFeedForward,
    Int4Linear,
    Int8Linear,
    PreNorm,
    RMSNorm,
    RotaryPositions,
    SteppingBlock,
    join_projections,
    quantize_int8,
    quantized,
    step_quickly,
)

pytestmark = pytest.mark.skipif(
    quantized.packed_kernel() != "packed 4-bit", reason="no packed kernel on this processor"
)


def decoder(*, heads: int = 4, key_value_heads: int = 2, rotated: int | None = None, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(0)
    width = 64
    blocks = [
        Block(
            PreNorm(Attention(width, heads, key_value_heads=key_value_heads, bias=False), RMSNorm(width), dropout),
            PreNorm(GatedFeedForward(width, 96), RMSNorm(width), dropout),
        )
        for _ in range(3)
    ]
    positions = RotaryPositions(width // heads if rotated is None else rotated)
    model = Decoder(50, width, blocks, positions=positions, norm=RMSNorm(width)).eval()
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def four_bits(model: Decoder) -> Decoder:
    """Replace the linear layers of the blocks by random 4-bit ones of the same shapes."""
    generator = torch.Generator().manual_seed(1)
    for parent in list(model.blocks.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                rows, columns = child.weight.shape
                quants = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
                scale = torch.rand(rows, columns // 32, generator=generator) / 40
                setattr(parent, name, Int4Linear.from_blocks(quants, scale, -7.5 * scale))
    return join_projections(model)  # pyright: ignore[reportReturnType]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize(
    "sizes", [{}, {"heads": 1, "key_value_heads": 1}, {"key_value_heads": 4}, {"rotated": 8}], ids=str
)
def test_a_token_goes_the_shorter_way_with_the_same_result(kind, sizes, monkeypatch):
    plain = decoder(**sizes)
    plain = four_bits(plain) if kind == "int4" else join_projections(quantize_int8(plain))
    quick = step_quickly(copy.deepcopy(plain))
    stepped: list[int] = []
    attended = SteppingBlock._attended

    def counted(block, *arguments):
        stepped.append(1)
        return attended(block, *arguments)

    monkeypatch.setattr(SteppingBlock, "_attended", counted)
    caches = [model.new_cache() for model in (plain, quick)]
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(2))
    for part in (tokens[:, :5], *tokens[:, 5:].split(1, 1)):
        expected, found = (model(part, cache=cache) for model, cache in zip((plain, quick), caches, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(stepped) == 7 * len(plain.blocks)


@pytest.mark.parametrize("case", ["batch", "no cache", "padding", "gradient", "16 bits"])
def test_everything_else_goes_the_usual_way(case, monkeypatch):
    plain = four_bits(decoder())
    quick = step_quickly(copy.deepcopy(plain))
    monkeypatch.setattr(SteppingBlock, "_attended", lambda *_: pytest.fail("it took the shorter way"))
    rows = 2 if case == "batch" else 1
    results = []
    for model in (plain, quick):
        cache = None if case == "no cache" else model.new_cache()
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "16 bits")
        with torch.set_grad_enabled(case == "gradient"), autocast:
            for token in torch.randint(50, (3, rows, 1), generator=torch.Generator().manual_seed(3)):
                present = torch.ones(rows, 1, dtype=torch.bool) if case == "padding" else None
                results.append(model(token, present=present, cache=cache).detach())
    assert all(torch.equal(expected, found) for expected, found in zip(results[:3], results[3:], strict=True))


def test_other_blocks_are_left_as_they_are():
    for model in (decoder(), four_bits(decoder(dropout=0.1))):
        assert all(type(block) is Block for block in step_quickly(model).blocks)
    with_bias = four_bits(decoder())
    joint = with_bias.blocks[1].feed_forward.sublayer.output
    with_bias.blocks[1].feed_forward.sublayer.output = Int8Linear.from_weight(joint.weight, torch.ones(64))
    kinds = [type(block) for block in step_quickly(with_bias).blocks]
    assert kinds == [SteppingBlock, Block, SteppingBlock]
    before = four_bits(decoder())
    names = list(before.state_dict())
    assert list(step_quickly(before).state_dict()) == names
