"""What is arranged for inference computes the same, in evaluation and in training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, RotaryPositions, arrange_for_inference
from allyouneed.nn.inference import InferenceLinear, inference_linear


def decoder(tied: bool = True) -> Decoder:
    torch.manual_seed(0)
    block = Block(PreNorm(Attention(24, 3), nn.LayerNorm(24)), PreNorm(FeedForward(24), nn.LayerNorm(24)))
    return Decoder(40, 24, [block], positions=RotaryPositions(8), norm=nn.LayerNorm(24), tied=tied)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 5), (1, 40)])
def test_logits_and_gradients_stay(shape: tuple[int, int], tied: bool):
    plain = decoder(tied)
    model = arrange_for_inference(copy.deepcopy(plain))
    assert isinstance(model, Decoder)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear and all(type(module) is InferenceLinear for module in linear)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert list(plain.state_dict()) == list(model.state_dict())
    tokens = torch.randint(40, shape)
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-5)
    for one in (plain, model):
        one(tokens).square().sum().backward()
    for theirs, ours in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_high_weights_have_contiguous_columns_and_the_same_parameters():
    model = decoder()
    before = dict(model.named_parameters())
    arrange_for_inference(model)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert after["embedding.weight"].t().is_contiguous()
    assert after["blocks.0.feed_forward.sublayer.inner.weight"].t().is_contiguous()
    assert after["blocks.0.feed_forward.sublayer.output.weight"].is_contiguous()


def test_other_types_are_left_alone():
    model = arrange_for_inference(decoder().bfloat16())
    assert isinstance(model, Decoder)
    assert not any(isinstance(module, InferenceLinear) for module in model.modules())
    assert model.embedding.weight.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_product_takes_what_torch_takes(dtype: torch.dtype):
    hidden, weight, bias = torch.randn(3, 4, 8).to(dtype), torch.randn(5, 8).to(dtype), torch.randn(5).to(dtype)
    assert torch.equal(inference_linear(hidden, weight, bias), F.linear(hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert inference_linear(torch.randn(2, 8), torch.randn(5, 8)).dtype == torch.bfloat16
