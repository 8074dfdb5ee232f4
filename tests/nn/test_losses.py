"""`linear_cross_entropy` against the cross-entropy of materialised logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from allyouneed.nn import linear_cross_entropy
from allyouneed.training import peak_tensor_bytes

WIDTH, VOCABULARY = 8, 29


def drawn(tokens: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=dtype) * scale
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype)
    return hidden, weight, torch.randint(VOCABULARY, (tokens,), generator=generator)


def expected_loss(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    logits = (hidden @ weight.T).reshape(-1, len(weight))
    return F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=ignore_index)


def compare(hidden: Tensor, weight: Tensor, targets: Tensor, tolerance: float = 1e-11, **keywords: int) -> None:
    """Compare the loss and both gradients, scaled by an upstream gradient that is not 1."""
    results = []
    for function in (linear_cross_entropy, expected_loss):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = function(leaves[0], leaves[1], targets, **keywords)
        results.append((loss, *torch.autograd.grad(loss * 0.37, leaves)))
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("some_ignored", [False, True], ids=["all count", "some ignored"])
@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 1200])
def test_equals_cross_entropy(tokens: int, some_ignored: bool):
    hidden, weight, targets = drawn(tokens)
    if some_ignored:
        targets[::3] = -100
    compare(hidden, weight, targets)


def test_in_32_bits():
    compare(*drawn(1200, torch.float32), tolerance=1e-4)


@pytest.mark.parametrize("axes", [(), (6,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_any_axes(axes: tuple[int, ...]):
    hidden, weight, targets = drawn(max(1, math.prod(axes)))
    count = math.prod(axes)
    compare(hidden[:count].reshape(*axes, WIDTH), weight, targets[:count].reshape(axes))


def test_inputs_that_are_not_contiguous():
    hidden, weight, targets = drawn(600)
    compare(hidden.view(20, 30, WIDTH).transpose(0, 1), weight.T.contiguous().T, targets.view(20, 30).T)
    compare(hidden[:1].expand(600, WIDTH), weight, targets)


def test_all_ignored_is_zero_and_has_no_gradient():
    hidden, weight, targets = drawn(520)
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("ignored", [0, VOCABULARY - 1, -1])
def test_another_target_may_be_ignored(ignored: int):
    hidden, weight, targets = drawn(600)
    targets[::5] = ignored
    compare(hidden, weight, targets, ignore_index=ignored)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_narrow_integers_are_targets(dtype: torch.dtype):
    hidden, weight, targets = drawn(50)
    assert torch.equal(linear_cross_entropy(hidden, weight, targets.to(dtype)), linear_cross_entropy(*drawn(50)))


def test_gradcheck():
    hidden, weight, targets = drawn(9)
    targets[4] = -100
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets), (hidden.requires_grad_(), weight.requires_grad_())
    )


def test_a_tied_embedding_gets_both_gradients():
    _, table, targets = drawn(600)
    tokens = targets.roll(1)
    gradients = []
    for function in (linear_cross_entropy, expected_loss):
        leaf = table.clone().requires_grad_()
        function(F.embedding(tokens, leaf).tanh(), leaf, targets).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_frozen_inputs(frozen: str):
    hidden, weight, targets = drawn(513)
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    loss = linear_cross_entropy(hidden, weight, targets)
    expected = expected_loss(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad == (frozen != "both")
    if frozen != "both":
        leaf = weight if frozen == "hidden" else hidden
        actual_gradient, expected_gradient = (torch.autograd.grad(result, leaf)[0] for result in (loss, expected))
        torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_loss_is_the_same(mode):
    hidden, weight, targets = drawn(1200)
    weight.requires_grad_()
    with_gradient = linear_cross_entropy(hidden, weight, targets)
    with mode():
        without = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(with_gradient, without) and not without.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_do_not_overflow(size: float, dtype: torch.dtype):
    weight = torch.full((3, 1), size, dtype=dtype)
    weight[1] = -size
    for target, loss in ((0, math.log(2) if size > 0 else 2e4), (1, 2e4 + math.log(2) if size > 0 else 0.0)):
        hidden = torch.ones(1, 1, dtype=dtype, requires_grad=True)
        actual = linear_cross_entropy(hidden, weight, torch.tensor([target]))
        assert float(actual.detach()) == pytest.approx(loss, rel=1e-6, abs=1e-6)
        actual.backward()
        assert hidden.grad is not None and bool(hidden.grad.isfinite().all())


def test_autocast_is_near_32_bits():
    hidden, weight, targets = drawn(1200, torch.float32, scale=0.5)
    results = []
    for enabled in (False, True):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = linear_cross_entropy(leaves[0], leaves[1], targets)
        assert loss.dtype == torch.float32
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    (loss, *gradients), (low_loss, *low_gradients) = results
    torch.testing.assert_close(low_loss, loss, rtol=1e-3, atol=0)
    for gradient, low in zip(gradients, low_gradients, strict=True):
        assert low.dtype == torch.float32
        assert float((low - gradient).norm() / gradient.norm()) < 0.01


def test_16_bit_inputs_are_summed_in_32():
    """A sum in 16 bits would stop growing: past 2^8 nats it moves in steps of 2 and more."""
    hidden, weight, targets = drawn(5_000, torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), expected_loss(hidden.double(), weight.double(), targets), rtol=2e-3, atol=0
    )


def test_the_matrix_of_logits_never_exists():
    """Its bytes would be the tokens times the vocabulary; the peak stays at a fraction, forward and backward."""
    tokens, vocabulary = 4096, 2000
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    whole = 4 * tokens * vocabulary
    assert peak_tensor_bytes(lambda: expected_loss(hidden, weight, targets).backward()) > whole
    assert peak_tensor_bytes(lambda: linear_cross_entropy(hidden, weight, targets).backward()) < 0.4 * whole


@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 6),
    vocabulary=st.integers(1, 12),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_equals_cross_entropy_at_any_size(tokens: int, width: int, vocabulary: int, scale: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.2] = -100
    compare(hidden, weight, targets, tolerance=1e-9)
