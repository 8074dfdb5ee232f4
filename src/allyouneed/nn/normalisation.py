"""Normalisation that torch's own layers do not give as the models here need it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# A dimension less than a vector, so that it takes any width.
_ZERO = torch.zeros(())


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight: layer normalisation without its mean and bias.

    Source: Zhang & Sennrich 2019, equation 4; ε as in the checkpoints that use it. Inputs of 16 bits are squared,
    averaged and scaled in 32, and rounded once, at the end.

    Args:
        width: length of the vectors.
        epsilon: keeps the root away from 0.

    Attributes:
        weight: what each coordinate is multiplied by; ones at first.

    Raises:
        ValueError: a width below 1, or a negative epsilon.
    """

    def __init__(self, width: int, epsilon: float = 1e-5):
        super().__init__()
        if width < 1:
            raise ValueError(f"width {width} is out of range: it must be at least 1")
        if not epsilon >= 0:
            raise ValueError(f"epsilon {epsilon} is out of range: it must be at least 0")
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Normalise each vector, in the precision in which it came."""
        weight = self.weight
        if hidden.numel() == hidden.shape[-1] and _on_cpu_in_32_bits(hidden, weight) and not torch.is_grad_enabled():
            # torch takes eight steps; where a token is written at a time, each counts.
            return torch.addcmul(_ZERO, hidden, weight, value=self.scale_of(hidden.reshape(-1)))
        if hidden.dtype.itemsize < 4:
            return F.rms_norm(hidden.float(), weight.shape, weight.float(), self.epsilon).to(hidden.dtype)
        return F.rms_norm(hidden, weight.shape, weight, self.epsilon)

    def scale_of(self, vector: Float[Tensor, " width"]) -> float:
        """Give 1 / √(mean(x²) + ε) of one vector."""
        return (float(vector.dot(vector)) / vector.shape[0] + self.epsilon) ** -0.5

    def extra_repr(self) -> str:
        """Give the width and epsilon."""
        return f"{len(self.weight)}, epsilon={self.epsilon}"


def _on_cpu_in_32_bits(hidden: Tensor, weight: Tensor) -> bool:
    return hidden.dtype == weight.dtype == torch.float32 and hidden.device.type == "cpu"
