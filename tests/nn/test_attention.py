"""Attention against torch's, its patterns, its kernels and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    AttentionPattern,
    LayerCache,
    PositionScheme,
    RMSNorm,
    RotaryPositions,
    attention_pattern,
    fused_attention,
)
from allyouneed.papers.alibi import ALiBi


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 10)


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention as the formula stands in the paper."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ value


def copy_to_torch(ours: Attention, reference: nn.MultiheadAttention) -> None:
    inputs = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in inputs]))
        reference.out_proj.weight.copy_(ours.output.weight)
        if reference.in_proj_bias is not None:
            reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in inputs]))
            reference.out_proj.bias.copy_(ours.output.bias)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("pattern", ["everywhere", "causal", "causal mask", "bias per head", "cross"])
@pytest.mark.parametrize(("batch", "queries", "heads"), [(1, 1, 5), (3, 7, 5), (2, 4, 1)])
def test_equals_torch_with_gradients(batch: int, queries: int, heads: int, pattern: str, bias: bool):
    torch.manual_seed(batch)
    width = 30
    ours = Attention(width, heads, bias=bias).double()
    reference = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True).double()
    copy_to_torch(ours, reference)
    hidden = torch.randn(batch, queries, width, dtype=torch.float64, requires_grad=True)
    source = torch.randn(batch, 9, width, dtype=torch.float64, requires_grad=True) if pattern == "cross" else hidden
    keys = source.shape[1]
    hidden_from = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    scores = torch.randn(1, heads, queries, keys, dtype=torch.float64)
    ours_pattern, mask = {
        "everywhere": (None, None),
        "causal": (AttentionPattern(causal=True), hidden_from),
        "causal mask": (AttentionPattern(mask=~hidden_from[None, None]), hidden_from),
        "bias per head": (AttentionPattern(mask=scores), scores.expand(batch, -1, -1, -1).flatten(0, 1)),
        "cross": (AttentionPattern(), None),
    }[pattern]
    actual = ours(hidden, ours_pattern, source=None if source is hidden else source)
    expected = reference(hidden, source, source, attn_mask=mask, need_weights=False)[0]
    same(actual, expected)
    upstream = torch.randn_like(actual)
    leaves = [hidden] if source is hidden else [hidden, source]
    gradients = [torch.autograd.grad(result, leaves, upstream, retain_graph=True) for result in (actual, expected)]
    for got, wanted in zip(*gradients, strict=True):
        same(got, wanted)
    actual.backward(upstream)
    expected.backward(upstream)
    assert reference.in_proj_weight.grad is not None and reference.out_proj.weight.grad is not None
    weights = [layer.weight.grad for layer in (ours.query, ours.key, ours.value)]
    same(torch.cat([grad for grad in weights if grad is not None]), reference.in_proj_weight.grad)
    same(ours.output.weight.grad, reference.out_proj.weight.grad)


@pytest.mark.parametrize(("heads", "key_value_heads"), [(5, 1), (6, 2), (6, 3)])
def test_grouped_heads_are_shared_by_neighbours(heads: int, key_value_heads: int):
    """Equal to attention with as many key-value heads, each repeated for the query heads of its group."""
    torch.manual_seed(0)
    width = heads * 6
    grouped = Attention(width, heads, key_value_heads=key_value_heads).double()
    full = Attention(width, heads).double()
    full.load_state_dict(
        grouped.state_dict()
        | {
            f"{layer}.{kind}": torch.cat(
                [
                    tensor[group * 6 : group * 6 + 6]
                    for head in range(heads)
                    for group in [head * key_value_heads // heads]
                ]
            )
            for layer in ("key", "value")
            for kind, tensor in getattr(grouped, layer).named_parameters()
        }
    )
    hidden = torch.randn(2, 5, width, dtype=torch.float64)
    same(grouped(hidden, AttentionPattern(causal=True)), full(hidden, AttentionPattern(causal=True)))


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("gradient", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_fused_attention_keeps_the_dtype_and_is_near_the_formula(
    dtype: torch.dtype, tolerance: float, gradient: bool, mask: str
):
    torch.manual_seed(1)
    exact = [torch.randn(2, 3, 6, 8, dtype=torch.float64).to(dtype) for _ in range(3)]
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    attn_mask = {"bool": causal, "float": -ALiBi(3).bias(torch.arange(6), torch.arange(6))[None].abs()}.get(mask)
    expected = plain(*(tensor.double() for tensor in exact), mask=causal if mask == "causal" else attn_mask)
    leaves = [tensor.requires_grad_(gradient) for tensor in exact]
    with torch.set_grad_enabled(gradient):
        actual = fused_attention(*leaves, attn_mask=attn_mask, is_causal=mask == "causal")
    assert actual.dtype == dtype and actual.requires_grad == gradient
    same(actual.double(), expected, tolerance)
    if gradient:
        actual.sum().backward()
        assert all(leaf.grad is not None and leaf.grad.dtype == dtype for leaf in leaves)


@pytest.mark.parametrize("gradient", [True, False], ids=["grad", "no grad"])
def test_autocast_to_16_bits_is_near_32(gradient: bool):
    torch.manual_seed(2)
    attention = Attention(32, 4)
    hidden = torch.randn(2, 10, 32)
    seen = []
    attention.kernel = lambda *qkv, **kw: seen.append(qkv[0].dtype) or fused_attention(*qkv, **kw)
    pattern = attention_pattern(ALiBi(4), 10, 10, causal=True)
    with torch.set_grad_enabled(gradient):
        expected = attention(hidden, pattern)
        with torch.autocast("cpu", torch.bfloat16):
            actual = attention(hidden, pattern)
    assert seen == [torch.float32, torch.bfloat16] and actual.dtype == torch.bfloat16
    same(actual.float(), expected, 0.02)


def test_autocast_leaves_64_bits_alone():
    query = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fused_attention(query, query, query)
    assert actual.dtype == torch.float64
    same(actual, plain(query, query, query), 1e-12)


def test_a_kernel_is_called_with_the_documented_arguments():
    calls = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, **keywords: object) -> Tensor:
        calls.append(((query.shape, key.shape, value.shape), keywords))
        return fused_attention(query, key, value, **keywords)

    attention = Attention(12, 4, key_value_heads=2, dropout=0.25, kernel=kernel)
    hidden, source = torch.randn(2, 3, 12), torch.randn(2, 5, 12)
    mask = torch.zeros(1, 1, 3, 5)
    attention(hidden, AttentionPattern(mask=mask), source=source)
    attention.eval()(hidden, AttentionPattern(causal=True))
    # Shared heads are repeated before the kernel, so that it needs to know nothing of groups.
    assert calls[0][0] == ((2, 4, 3, 3), (2, 4, 5, 3), (2, 4, 5, 3))
    assert calls[0][1] == {"attn_mask": mask, "dropout_p": 0.25, "is_causal": False}
    assert calls[1][1] == {"attn_mask": None, "dropout_p": 0.0, "is_causal": True}
    reference = Attention(12, 4, key_value_heads=2, kernel=F.scaled_dot_product_attention).eval()
    reference.load_state_dict(attention.state_dict())
    same(attention(hidden), reference(hidden), 1e-6)


class TestPattern:
    """What `attention_pattern` makes of a scheme, causality and padding, against the rule spelled out."""

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("padded", [True, False])
    @pytest.mark.parametrize("scheme", [PositionScheme(), ALiBi(3)], ids=["plain", "alibi"])
    @pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (1, 4), (2, 5)])
    def test_equals_the_rule(self, queries: int, keys: int, scheme: PositionScheme, padded: bool, causal: bool):
        present = torch.tensor([[False, True, True, False, True][:keys], [True] * keys]) if padded else None
        pattern = attention_pattern(scheme, queries, keys, causal=causal, present=present)
        expected = torch.zeros(2, 3, queries, keys)
        for row in range(2):
            for i in range(queries):
                slot = keys - queries + i
                for j in range(keys):
                    absent = present is not None and not present[row, j] and j != slot
                    if absent or (causal and j > slot):
                        expected[row, :, i, j] = -math.inf
                    elif isinstance(scheme, ALiBi):
                        expected[row, :, i, j] = -scheme.slopes * abs(slot - j)
        mask = torch.zeros(1, 1, queries, keys) if pattern.mask is None else pattern.mask
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
        if pattern.causal:
            assert pattern.mask is None and queries == keys
            mask = mask.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(1), -math.inf)
        torch.testing.assert_close(mask.expand(2, 3, -1, -1), expected)

    @pytest.mark.parametrize(("queries", "keys", "mask"), [(4, 4, False), (1, 4, False), (2, 4, True)])
    def test_no_mask_where_a_kernel_can_skip_work(self, queries: int, keys: int, mask: bool):
        pattern = attention_pattern(PositionScheme(), queries, keys, causal=True)
        assert (pattern.mask is not None) == mask and pattern.causal == (queries == keys)

    def test_refuses_more_queries_than_keys(self):
        with pytest.raises(ValueError, match="5 queries over 3 keys"):
            attention_pattern(PositionScheme(), 5, 3, causal=True)

    def test_refuses_padding_of_other_keys(self):
        with pytest.raises(ValueError, match=r"3 tokens.*5 keys"):
            attention_pattern(PositionScheme(), 5, 5, causal=True, present=torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("width", "heads", "key_value_heads", "named"),
    [
        (30, 4, None, ("30", "4")),
        (30, 0, None, ("30", "0")),
        (30, -5, None, ("-5",)),
        (30, 5, 2, ("5", "2")),
        (30, 5, 0, ("5", "0")),
        (30, 5, 10, ("5", "10")),
    ],
)
def test_refuses_heads_that_do_not_divide(width: int, heads: int, key_value_heads: int | None, named: tuple[str, ...]):
    with pytest.raises(ValueError) as error:
        Attention(width, heads, key_value_heads=key_value_heads)
    assert all(number in str(error.value) for number in named)


def test_dropout_is_of_training_alone():
    torch.manual_seed(3)
    attention, hidden = Attention(12, 3, dropout=0.5), torch.randn(2, 8, 12)
    assert not torch.equal(attention(hidden), attention(hidden))
    attention.eval()
    assert torch.equal(attention(hidden), attention(hidden))


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [None, "alibi"])
def test_fused_attention_on_an_accelerator(mask: str | None):
    torch.manual_seed(4)
    tensors = [torch.randn(2, 4, 64, 32, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    bias = None if mask is None else ALiBi(4).cuda().bias(*[torch.arange(64, device="cuda")] * 2)[None]
    expected = plain(*(tensor.double() for tensor in tensors), mask=None if bias is None else bias.double())
    same(fused_attention(*tensors, attn_mask=bias).double(), expected, 0.03)


@pytest.mark.parametrize("window", [1, 3, 8, 20])
@pytest.mark.parametrize("kind", ["causal", "padded", "bias"])
@pytest.mark.parametrize(("queries", "keys"), [(8, 8), (1, 8), (3, 8)])
def test_windows_are_those_of_a_mask(window: int, kind: str, queries: int, keys: int):
    """For keys that are all there, and for those that a window's cache has kept."""
    torch.manual_seed(0)
    attention = Attention(12, 4, key_value_heads=2, window=window).double()
    present = torch.arange(keys) >= torch.tensor([[0], [2]]) if kind == "padded" else None
    scheme = ALiBi(4) if kind == "bias" else PositionScheme()
    usual = attention_pattern(scheme, queries, keys, causal=True, present=present)
    slots = torch.arange(keys)
    own = slots[keys - queries :, None]
    near = ((slots <= own) & (slots > own - window))[None, None]
    if present is not None:
        near = near & (present[:, None, None] | (slots == own))
    bias = scheme.bias(slots[keys - queries :], slots)
    mask = near if bias is None else bias[None].double().masked_fill(~near, -math.inf)
    hidden = torch.randn(2, keys, 12, dtype=torch.float64)
    expected = Attention(12, 4, key_value_heads=2).double()
    expected.load_state_dict(attention.state_dict())

    class Held(LayerCache):
        """Has what was computed for all keys, and gives the last of them."""

        def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return self.held

    for kept in {keys, min(keys, window - 1 + queries)}:
        cache = Held()
        _, key, value = attention._project(hidden, None, None)
        cache.held = key[:, :, keys - kept :], value[:, :, keys - kept :]
        with torch.no_grad():
            actual = attention(hidden[:, keys - queries :], usual, cache=cache)
            whole = Held()
            whole.held = key, value
            same(actual, expected(hidden[:, keys - queries :], AttentionPattern(mask=mask), cache=whole))
    with torch.enable_grad():
        if queries == keys:
            same(attention(hidden, usual), expected(hidden, AttentionPattern(mask=mask)))


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window 0 is out of range"):
        Attention(12, 4, window=0)


def test_norms_of_queries_and_keys_are_those_of_each_head():
    """With the projections joined and apart: with norms, what queries are multiplied by changes nothing."""
    torch.manual_seed(0)
    norms = {"query_norm": RMSNorm(6, 0.0), "key_norm": RMSNorm(6, 0.0)}
    attention = Attention(18, 4, head_width=6, key_value_heads=2, **norms, output_bias=False).double()
    assert attention.output.bias is None and attention.query.bias is not None
    hidden = torch.randn(2, 5, 18, dtype=torch.float64)
    pattern = AttentionPattern(causal=True, rotation=RotaryPositions(6).rotation(torch.arange(5)[None]))
    expected = attention(hidden, pattern)
    query = attention._split(attention.query(hidden), 4)
    scaled = query / query.square().mean(-1, keepdim=True).sqrt()
    assert pattern.rotation is not None
    same(attention._project(hidden, None, pattern.rotation)[0], pattern.rotation(scaled))
    parts = [attention.query, attention.key, attention.value]
    joint = nn.Linear(18, 48).double()
    with torch.no_grad():
        joint.weight.copy_(torch.cat([part.weight for part in parts]))
        joint.bias.copy_(torch.cat([part.bias for part in parts]))
    attention.join(joint)
    same(attention(hidden, pattern), expected)
    with torch.no_grad():
        joint.weight[:24] *= 3
        joint.bias[:24] *= 3
    same(attention(hidden, pattern), expected)
