"""Tokens to experts and back: against loops over experts and tokens, in float64, forward and gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.nn import FeedForward, GatedFeedForward, quantize_int8
from allyouneed.nn.mixture import Experts, GatedExperts, each, mix, segment_linear, sort_routes

COUNTS = (3, 0, 5, 1, 0)


def parameters(experts: int, outputs: int, inputs: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()  # noqa: E731
    return [draw(outputs, inputs) for _ in range(experts)], [draw(outputs) for _ in range(experts)]


class TestSegmentLinear:
    @pytest.mark.parametrize("biased", [False, True])
    def test_equals_a_loop_over_segments(self, biased: bool) -> None:
        weights, biases = parameters(5, 4, 6)
        rows = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
        whole = segment_linear(rows, COUNTS, weights, biases if biased else None)
        parts = zip(rows.split(list(COUNTS)), weights, biases, strict=True)
        looped = torch.cat([F.linear(part, weight, bias if biased else None) for part, weight, bias in parts])
        torch.testing.assert_close(whole, looped, rtol=1e-13, atol=1e-13)
        upstream = torch.randn_like(whole)
        learned = [rows, *weights, *(biases if biased else [])]
        ours = torch.autograd.grad(whole, learned, upstream)
        theirs = torch.autograd.grad(looped, learned, upstream, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            # A segment without rows has a gradient of zeros, where the loop may have none.
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-13, atol=1e-13)

    def test_gradcheck(self) -> None:
        weights, biases = parameters(3, 2, 3)
        rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

        def mapped(rows: Tensor, *parameters: Tensor) -> Tensor:
            return segment_linear(rows, (1, 0, 3), list(parameters[:3]), list(parameters[3:]))

        assert torch.autograd.gradcheck(mapped, (rows, *weights, *biases))

    def test_in_mixed_precision(self) -> None:
        weights, _ = parameters(2, 8, 8)
        weights = [weight.detach().float().requires_grad_() for weight in weights]
        rows = torch.randn(6, 8)
        with torch.autocast("cpu", torch.bfloat16):
            mapped = segment_linear(rows, (4, 2), weights)
            expected = torch.cat([F.linear(rows[:4], weights[0]), F.linear(rows[4:], weights[1])])
        assert mapped.dtype == torch.bfloat16
        torch.testing.assert_close(mapped, expected)
        mapped.float().sum().backward()
        assert weights[0].grad is not None and weights[0].grad.dtype == torch.float32

    @pytest.mark.parametrize("counts", [(3, 2, 5), (3, 7), (9, 1, 0, 0)])
    def test_counts_that_do_not_fit_are_refused(self, counts: tuple[int, ...]) -> None:
        weights, _ = parameters(3, 2, 6)
        with pytest.raises(ValueError, match="9 rows in"):
            segment_linear(torch.randn(9, 6, dtype=torch.float64), counts, weights)


class TestRoutes:
    def test_sorted_by_expert_and_stable(self) -> None:
        chosen = torch.tensor([[2, 0], [1, 2], [2, 1]])
        weights = torch.arange(6.0).reshape(3, 2)
        routes = sort_routes(chosen, weights, 4)
        assert routes.counts == (1, 2, 3, 0)
        assert routes.tokens.tolist() == [0, 1, 2, 0, 1, 2]
        assert routes.weights.tolist() == [1.0, 2.0, 5.0, 0.0, 3.0, 4.0]

    def test_what_is_dropped_has_no_route(self) -> None:
        chosen = torch.tensor([[2, 0], [1, 2], [2, 1]])
        kept = torch.tensor([[True, False], [True, True], [False, True]])
        routes = sort_routes(chosen, torch.ones(3, 2), 3, kept)
        assert routes.counts == (0, 2, 2) and routes.tokens.tolist() == [1, 2, 0, 1]

    @pytest.mark.parametrize("expert", [-1, 3])
    def test_an_unknown_expert_is_refused(self, expert: int) -> None:
        with pytest.raises(ValueError, match="there are 3"):
            sort_routes(torch.tensor([[0], [expert]]), torch.ones(2, 1), 3)

    def test_no_tokens(self) -> None:
        routes = sort_routes(torch.zeros(0, 2, dtype=torch.int64), torch.ones(0, 2), 3)
        assert routes.counts == (0, 0, 0)
        experts = Experts(3, 4, 5)
        assert mix(torch.zeros(0, 4), routes, experts).shape == (0, 4)
        with torch.no_grad():
            assert mix(torch.zeros(0, 4), routes, experts).shape == (0, 4)


def alone(experts: Experts, index: int) -> Callable[[Tensor], Tensor]:
    """Make the usual feed-forward layer with one expert's weights."""
    inner: Any = experts.inner[index]
    hidden, width = inner.weight.shape
    bias = inner.bias is not None
    gated = isinstance(experts, GatedExperts)
    layer: Any = (GatedFeedForward if gated else FeedForward)(width, hidden, experts.activation, bias)
    state = {name.replace(f".{index}.", "."): value for name, value in experts.state_dict().items()}
    layer.double().load_state_dict({name: state[name] for name in layer.state_dict()})
    return layer


@pytest.mark.parametrize("kind", [Experts, GatedExperts])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_the_mixture_equals_one_layer_after_another(kind: type[Experts], bias: bool, training: bool) -> None:
    torch.manual_seed(0)
    experts = kind(5, 6, 7, torch.tanh, bias).double()
    tokens = torch.randn(11, 6, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(4)[:3] for _ in range(11)])  # Nobody goes to the last.
    weights = torch.rand(11, 3, dtype=torch.float64)
    layers = [alone(experts, index) for index in range(5)]
    expected = torch.zeros(11, 6, dtype=torch.float64)
    for token, row in enumerate(chosen):
        for place, expert in enumerate(row):
            expected[token] += weights[token, place] * layers[int(expert)](tokens[token])
    with torch.set_grad_enabled(training):
        mixed = mix(tokens, sort_routes(chosen, weights, 5), experts)
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)


def test_quantised_experts_are_applied_one_by_one() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))
    rows = torch.randn(6, 32)
    exact = each(layers, rows, (2, 0, 4))
    holder = nn.Sequential(layers)
    quantize_int8(holder)
    assert not isinstance(layers[0], nn.Linear)
    close = each(layers, rows, (2, 0, 4))
    assert 0 < float(((close - exact).abs().max() / exact.abs().max()).detach()) < 0.05


@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 0, 4), (2, 4, -1)])
def test_sizes_below_1_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Experts(*sizes)
