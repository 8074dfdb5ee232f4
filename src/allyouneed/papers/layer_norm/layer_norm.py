"""Layer normalisation: standardise the summed inputs of a layer over its units, one case at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class _LayerNorm(torch.autograd.Function):
    """Forward and backward pass over the last axis, both written out."""

    @staticmethod
    def forward(ctx: Any, summed: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        # Sums over many units lose too much in 16 bits.
        wide = summed.to(torch.promote_types(summed.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
        scale = variance.add_(epsilon).rsqrt_()
        normalised = (wide - mean).mul_(scale)
        ctx.save_for_backward(normalised, scale, gain)
        ctx.types = summed.dtype, bias.dtype
        return torch.addcmul(bias, normalised, gain).to(summed.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        normalised, scale, gain = ctx.saved_tensors
        summed_type, bias_type = ctx.types
        gradient = gradients[0].to(normalised.dtype)
        bias_gradient = gradient.reshape(-1, len(gain)).sum(0)
        gain_gradient = (gradient * normalised).view(-1, len(gain)).sum(0)
        # With y = (a − μ)/σ and u = ∂L/∂y: ∂y_j/∂a_i = (δ_ij − 1/H − y_i y_j/H)/σ, and summed over j
        # ∂L/∂a_i = (u_i − mean(u) − y_i mean(u y))/σ.
        upstream = gradient * gain
        along = (upstream * normalised).mean(-1, keepdim=True)
        upstream -= upstream.mean(-1, keepdim=True)
        summed_gradient = upstream.addcmul_(normalised, along, value=-1.0).mul_(scale)
        return summed_gradient.to(summed_type), gain_gradient.to(gain.dtype), bias_gradient.to(bias_type), None


def layer_norm(
    summed: Float[Tensor, "*axes units"],
    gain: Float[Tensor, " units"] | None = None,
    bias: Float[Tensor, " units"] | None = None,
    epsilon: float = 1e-5,
) -> Float[Tensor, "*axes units"]:
    """Standardise each vector by its own mean and standard deviation, then scale and shift every unit.

    Source: Ba et al. 2016, equation 3 and, with gain and bias, equation 15. The variance is divided by the number of
    units, not by one less. Computed in 32 bits or more, returned in the type of `summed`. First derivatives only.

    Args:
        summed: the summed inputs of a layer; the last axis is its units.
        gain: multiplies each standardised unit; 1 where None.
        bias: added to each unit; 0 where None.
        epsilon: added to the variance. The paper has none; without it equal units give NaN.

    Raises:
        ValueError: a vector without units, or a negative epsilon.
    """
    if summed.shape[-1] == 0:
        raise ValueError(f"summed inputs of shape {tuple(summed.shape)} have no units to normalise over")
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon is {epsilon}: it must be 0 or more")
    units = summed.shape[-1]
    gain = summed.new_ones(units) if gain is None else gain
    bias = summed.new_zeros(units) if bias is None else bias
    output = _LayerNorm.apply(summed, gain, bias, epsilon)
    assert isinstance(output, Tensor)
    return output


class LayerNorm(nn.Module):
    """Layer normalisation with a learned gain and bias for every unit, 1 and 0 at first.

    Source: Ba et al. 2016, section 3 and equation 15. The same in training and at test time, whatever the batch.

    Args:
        units: of the layer. Several numbers are the last axes that are normalised over together.
        epsilon: added to the variance.
        affine: whether there are a gain and a bias.

    Raises:
        ValueError: an axis without units, or a negative epsilon.
    """

    def __init__(self, units: int | Sequence[int], epsilon: float = 1e-5, affine: bool = True):
        super().__init__()
        self.shape = (units,) if isinstance(units, int) else tuple(units)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"a layer of shape {self.shape} has no units to normalise over")
        if not epsilon >= 0.0:
            raise ValueError(f"epsilon is {epsilon}: it must be 0 or more")
        self.epsilon = epsilon
        self.gain = nn.Parameter(torch.ones(self.shape)) if affine else None
        self.bias = nn.Parameter(torch.zeros(self.shape)) if affine else None

    def forward(self, summed: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Normalise over the last axes.

        Raises:
            ValueError: the last axes are not the layer's.
        """
        if tuple(summed.shape[-len(self.shape) :]) != self.shape:
            raise ValueError(
                f"summed inputs of shape {tuple(summed.shape)} do not end in the shape {self.shape} of this LayerNorm"
            )
        if len(self.shape) == 1:
            return layer_norm(summed, self.gain, self.bias, self.epsilon)
        gain, bias = (None if p is None else p.flatten() for p in (self.gain, self.bias))
        flat = summed.flatten(-len(self.shape))
        return layer_norm(flat, gain, bias, self.epsilon).view(summed.shape)

    def extra_repr(self) -> str:
        """Say what this norm is over."""
        return f"{self.shape}, epsilon={self.epsilon}, affine={self.gain is not None}"
