"""The loss of a language model, without the whole matrix of logits."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Logits of this many tokens at a time stay in the processor's cache.
_TOKENS_AT_A_TIME = 512


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients chunk by chunk on the way forward, so that no chunk's logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, needs_gradient: bool
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        hidden_gradient = torch.empty_like(low_hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if needs_gradient else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), _TOKENS_AT_A_TIME):
                chunk = slice(start, start + _TOKENS_AT_A_TIME)
                chosen = targets[chunk]
                counted = chosen != ignore_index
                index = chosen.where(counted, 0).long()[:, None]
                logits = F.linear(low_hidden[chunk], low_weight).to(wide)
                logits -= logits.amax(-1, keepdim=True)
                chosen_logits = logits.gather(1, index)
                exponentials = logits.exp_()
                normaliser = exponentials.sum(-1, keepdim=True)
                losses = (normaliser.log() - chosen_logits).squeeze(1)
                total += losses.where(counted, 0.0).sum()
                if hidden_gradient is None or weight_gradient is None:
                    continue
                gradient = exponentials.mul_(counted[:, None] / normaliser)
                gradient.scatter_add_(1, index, -counted[:, None].to(gradient.dtype))
                gradient = gradient.to(dtype)
                torch.mm(gradient, low_weight, out=hidden_gradient[chunk])
                weight_gradient += gradient.T @ low_hidden[chunk]
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient.to(hidden.dtype), weight_gradient.to(weight.dtype))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_gradient, weight_gradient = ctx.saved_tensors
        (gradient,) = gradients
        return hidden_gradient * gradient, weight_gradient * gradient, None, None, None


def linear_cross_entropy(
    hidden: Float[Tensor, "*axes width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, "*axes"],
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """Sum the cross-entropies, in nats, of the targets under the logits `hidden @ weight.T`.

    Equal to `cross_entropy(hidden @ weight.T, targets, reduction="sum")`, in less time and memory: logits exist for a
    few hundred tokens at a time. The softmax is computed in 32 bits or more, whatever the precision of the matrices.

    Args:
        hidden: the vectors before the output projection.
        weight: the output projection.
        targets: the right token of each vector.
        ignore_index: the target of positions that do not count: they add neither loss nor gradient.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total = _LinearCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight, targets.flatten(), ignore_index, needs_gradient
    )
    assert isinstance(total, Tensor)
    return total
