"""Position-wise feed-forward layers."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear maps with an activation between (Vaswani et al. 2017, section 3.3).

    Args:
        width: width of the residual stream.
        hidden: inner width; four times the width where None.
        activation: applied between the maps.
        bias: whether the maps have biases.
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
        bias: whether the maps have biases.
    """

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.silu, bias: bool = False):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.inner = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)
        self.activation = activation

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Map each token by itself."""
        return self.output(self.activation(self.gate(hidden)) * self.inner(hidden))
