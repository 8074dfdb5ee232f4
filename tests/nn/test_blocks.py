"""Blocks against torch's encoder layer, feed-forward layers against their formulas, and initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    AttentionPattern,
    Block,
    FeedForward,
    GatedFeedForward,
    PositionScheme,
    PostNorm,
    PreNorm,
    attention_pattern,
    initialise_xavier,
)


def same(actual: Tensor | None, expected: Tensor | None, tolerance: float = 1e-10) -> None:
    assert actual is not None and expected is not None
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("wrapper", [PreNorm, PostNorm])
@pytest.mark.parametrize("activation", [F.relu, F.gelu])
@pytest.mark.parametrize("masked", ["nothing", "padding", "the future"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 6)])
def test_equals_torch_with_gradients(batch: int, length: int, masked: str, activation, wrapper):
    torch.manual_seed(length)
    width, heads, inner = 30, 5, 47
    attention, feed_forward = Attention(width, heads), FeedForward(width, inner, activation)
    ours = Block(wrapper(attention, nn.LayerNorm(width)), wrapper(feed_forward, nn.LayerNorm(width))).double()
    reference = nn.TransformerEncoderLayer(
        width, heads, inner, dropout=0.0, activation=activation, batch_first=True, norm_first=wrapper is PreNorm
    ).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    pairs = {
        "self_attn.in_proj_weight": [attention.query.weight, attention.key.weight, attention.value.weight],
        "self_attn.in_proj_bias": [attention.query.bias, attention.key.bias, attention.value.bias],
        "self_attn.out_proj.weight": [attention.output.weight],
        "self_attn.out_proj.bias": [attention.output.bias],
        "linear1.weight": [feed_forward.inner.weight],
        "linear1.bias": [feed_forward.inner.bias],
        "linear2.weight": [feed_forward.output.weight],
        "linear2.bias": [feed_forward.output.bias],
        "norm1.weight": [ours.attention.norm.weight],
        "norm1.bias": [ours.attention.norm.bias],
        "norm2.weight": [ours.feed_forward.norm.weight],
        "norm2.bias": [ours.feed_forward.norm.bias],
    }
    # Strict: torch has no weight that we lack.
    reference.load_state_dict({name: torch.cat([part.detach() for part in parts]) for name, parts in pairs.items()})
    present = torch.ones(batch, length, dtype=torch.bool)
    present[-1, length - length // 2 :] = False
    causal, padded = masked == "the future", masked == "padding"
    pattern = attention_pattern(PositionScheme(), length, length, causal=causal, present=present if padded else None)
    hidden = torch.randn(batch, length, width, dtype=torch.float64)
    actual = ours(hidden, pattern)
    expected = reference(
        hidden,
        src_mask=torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None,
        src_key_padding_mask=~present if padded else None,
    )
    # A padded token's own output differs, as it is meaningless: ours looks at itself too.
    counted = present if padded else torch.ones_like(present)
    same(actual[counted], expected[counted])
    upstream = torch.randn_like(actual[counted])
    actual[counted].backward(upstream)
    expected[counted].backward(upstream)
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parts in pairs.items():
        same(torch.cat([part.grad for part in parts]), gradients[name])


def test_further_arguments_reach_the_sublayer():
    class Taking(nn.Module):
        def forward(self, hidden: Tensor, add: float, *, times: float) -> Tensor:
            return (hidden + add) * times

    hidden = torch.randn(1, 2, 4)
    assert torch.equal(PreNorm(Taking(), nn.Identity())(hidden, 1.0, times=3.0), hidden + (hidden + 1) * 3)
    assert torch.equal(PostNorm(Taking(), nn.Identity())(hidden, 1.0, times=3.0), hidden + (hidden + 1) * 3)


@pytest.mark.parametrize("wrapper", [PreNorm, PostNorm])
def test_dropout_of_the_branch_is_of_training_alone(wrapper):
    torch.manual_seed(0)
    block = wrapper(FeedForward(6), nn.Identity(), dropout=0.5)
    hidden = torch.randn(4, 50, 6)
    branch = block.sublayer(hidden)
    dropped = block(hidden) - hidden
    kept = ~torch.isclose(dropped, torch.zeros(()), atol=1e-7)
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * branch[kept], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.eval()(hidden) - hidden, branch)


def test_an_encoder_block_looks_ahead():
    """The pattern decides, not the block: without one, everyone looks at everyone."""
    block = Block(PreNorm(Attention(6, 2), nn.LayerNorm(6)), PreNorm(FeedForward(6), nn.LayerNorm(6)))
    hidden = torch.randn(1, 4, 6, requires_grad=True)
    for pattern, looks_ahead in ((None, True), (AttentionPattern(causal=True), False)):
        (gradient,) = torch.autograd.grad(block(hidden, pattern)[0, 0].sum(), hidden)
        assert bool(gradient[0, 1:].any()) == looks_ahead


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_layers_are_their_formulas(shape: tuple[int, ...], bias: bool):
    hidden = torch.randn(shape)
    layer = FeedForward(6, bias=bias)
    assert layer.inner.weight.shape == (24, 6)
    inner = hidden @ layer.inner.weight.T + (layer.inner.bias if bias else 0)
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    same(layer(hidden), gelu @ layer.output.weight.T + (layer.output.bias if bias else 0), 1e-5)
    gated = GatedFeedForward(6, 11, bias=bias)
    gate, inner = gated.gate(hidden), gated.inner(hidden)
    same(gated(hidden), gated.output(gate / (1 + torch.exp(-gate)) * inner), 1e-5)
    assert (gated.gate.bias is None) == (not bias)


def test_initial_weights():
    torch.manual_seed(0)
    model = nn.ModuleList(
        [nn.Linear(300, 100), nn.Linear(100, 300, bias=False), nn.Embedding(500, 64), nn.LayerNorm(9)]
    )
    initialise_xavier(model)
    for layer in model[:2]:
        bound = math.sqrt(6 / 400)
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not model[0].bias.any()
    assert model[2].weight.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert bool((model[3].weight == 1).all()) and not model[3].bias.any()
