"""Position-wise feed-forward layers."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear layers with an activation between (Vaswani et al. 2017, section 3.3).

    Args:
        width: width of the residual stream.
        hidden: inner width; four times the width where None.
        activation: applied between the layers.
        bias: whether the linear layers have biases.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        bias: bool = True,
    ):
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.inner = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)
        self.activation = activation

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Map each token by itself."""
        return self.output(self.activation(self.inner(hidden)))


class GatedFeedForward(nn.Module):
    """A feed-forward layer whose inner vector is gated; with SiLU it is SwiGLU (Shazeer 2020, equation 6).

    Args:
        width: width of the residual stream.
        hidden: inner width.
        activation: applied to the gate.
        bias: whether the linear layers have biases.
    """

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.silu, bias: bool = False):
        super().__init__()
        self.gate: Any = nn.Linear(width, hidden, bias=bias)
        self.inner: Any = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)
        self.activation = activation
        self.joint: nn.Module | None = None

    def join(self, joint: nn.Module) -> None:
        """Compute gate and inner vector by one linear layer, outputs side by side, in place of their own."""
        self.joint = joint
        self.gate = self.inner = None

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Map each token by itself."""
        if self.joint is not None:
            gate, inner = self.joint(hidden).chunk(2, -1)
            return self.output(self.activation(gate) * inner)
        return self.output(self.activation(self.gate(hidden)) * self.inner(hidden))
