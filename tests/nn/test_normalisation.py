"""RMSNorm against its formula, torch's and the reference implementation of LLaMA."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from allyouneed.nn import RMSNorm


@pytest.mark.parametrize("shape", [(7,), (2, 7), (3, 1, 7)])
def test_equals_the_formula_and_the_references_with_gradients(shape: tuple[int, ...]):
    torch.manual_seed(0)
    ours, theirs, torchs = RMSNorm(7, 1e-3), LlamaRMSNorm(7, 1e-3), nn.RMSNorm(7, eps=1e-3)
    weight = torch.randn(7)
    hidden = torch.randn(shape, requires_grad=True)
    results = []
    for norm in (ours, theirs, torchs):
        with torch.no_grad():
            norm.weight.copy_(weight)
        output = norm(hidden)
        results.append((output, *torch.autograd.grad((output**3).sum(), [hidden, norm.weight])))
    formula = hidden / torch.sqrt((hidden**2).mean(-1, keepdim=True) + 1e-3) * weight
    torch.testing.assert_close(results[0][0], formula, rtol=1e-5, atol=1e-6)
    for other in results[1:]:
        for got, wanted in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype: torch.dtype):
    torch.manual_seed(1)
    norm = RMSNorm(300).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
    # The square of 300 overflows 16-bit floats.
    hidden = (300 * torch.randn(4, 300)).to(dtype)
    exact = hidden.double() / (hidden.double() ** 2).mean(-1, keepdim=True).sqrt() * norm.weight.double()
    found = norm(hidden)
    assert found.dtype == dtype
    # A rounding is at most half of a unit in the last place; two could be a whole one.
    unit = torch.finfo(dtype).eps
    assert bool(((found.double() - exact).abs() <= 0.51 * unit * exact.abs() + 1e-7).all())


def test_autocast_and_mixed_precision_keep_the_type_of_the_input():
    norm = RMSNorm(8)
    assert norm(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 8)).dtype == torch.float32


@pytest.mark.parametrize(("width", "epsilon", "message"), [(0, 1e-5, "width 0"), (3, -1.0, "epsilon -1.0")])
def test_what_is_out_of_range_is_refused(width: int, epsilon: float, message: str):
    with pytest.raises(ValueError, match=f"{message} is out of range"):
        RMSNorm(width, epsilon)
