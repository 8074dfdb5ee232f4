"""The norms that layer norm is compared with: batch norm, for recurrent layers too, and weight norm."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .recurrent import StepNorm


class _BatchNorm(nn.Module):
    """Gain and bias of each unit, and running averages for the time when there is no batch."""

    mean: Tensor
    variance: Tensor

    def __init__(self, shape: tuple[int, ...], gain: float, epsilon: float, momentum: float, unbiased: bool):
        super().__init__()
        if min(shape) < 1:
            raise ValueError(f"statistics of shape {shape}: there must be at least one unit and one step")
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}: it must be above 0 and at most 1")
        self.epsilon, self.momentum, self.unbiased = epsilon, momentum, unbiased
        self.gain = nn.Parameter(torch.full(shape[-1:], gain))
        self.bias = nn.Parameter(torch.zeros(shape[-1:]))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))

    def _normalise(self, summed: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise over the first axis; in training `mean` and `variance` are moved towards the batch's."""
        cases, epsilon, gain = len(summed), self.epsilon, self.gain
        if self.training:
            if cases < 2:
                raise ValueError(f"a batch of {cases} has no variance: batch normalisation needs 2 cases or more")
            if self.unbiased:
                # s²·n/(n − 1) + ε under the root is the biased variance s² + ε', with the rest of it in the gain.
                kept = (cases - 1) / cases
                epsilon, gain = epsilon * kept, gain * math.sqrt(kept)
        steps = mean.numel() // len(gain)
        normalised = F.batch_norm(
            summed.flatten(1),
            mean.flatten(),
            variance.flatten(),
            gain.repeat(steps),
            self.bias.repeat(steps),
            training=self.training,
            momentum=self.momentum,
            eps=epsilon,
        )
        return normalised.view(summed.shape)


class BatchNorm(_BatchNorm):
    """Batch normalisation of a feed-forward layer.

    Source: Ioffe & Szegedy 2015; Ba et al. 2016, equation 2 and section 6.6. As `torch.nn.BatchNorm1d`, with a choice
    of the estimator that a batch is normalised by: the paper takes the unbiased one for batches of 4.

    Args:
        units: of the layer.
        epsilon: added to the variance.
        momentum: share of the newest batch in the running averages.
        unbiased: divide by one case less in training too, not only in the running average.

    Raises:
        ValueError: no units, or a momentum out of range; in training, a batch of one case.
    """

    def __init__(self, units: int, epsilon: float = 1e-5, momentum: float = 0.1, unbiased: bool = False):
        super().__init__((units,), gain=1.0, epsilon=epsilon, momentum=momentum, unbiased=unbiased)

    def forward(self, summed: Float[Tensor, "batch units"]) -> Float[Tensor, "batch units"]:
        """Normalise over the batch."""
        return self._normalise(summed, self.mean, self.variance)


class RecurrentBatchNorm(_BatchNorm, StepNorm):
    """Batch normalisation with statistics for each time step, and one gain and bias for all of them.

    Source: Cooijmans et al. 2016, which Ba et al. compare with (sections 4 and 6.2): statistics apart for each step and
    a gain that begins at 0.1. A step beyond the longest sequence of training has the statistics of the last one.

    Args:
        units: of the layer.
        steps: of the longest sequence in training.
        gain: at first.
        epsilon: added to the variance.
        momentum: share of the newest batch in the running averages.

    Raises:
        ValueError: no units or steps, or a momentum out of range; in training, a batch of one case or too long a
            sequence.
    """

    def __init__(self, units: int, steps: int, gain: float = 0.1, epsilon: float = 1e-5, momentum: float = 0.1):
        super().__init__((steps, units), gain=gain, epsilon=epsilon, momentum=momentum, unbiased=False)

    def forward(
        self, summed: Float[Tensor, "batch *steps units"], first_step: int
    ) -> Float[Tensor, "batch *steps units"]:
        """Normalise over the batch, each step by itself."""
        known = len(self.mean)
        end = first_step + (1 if summed.dim() == 2 else summed.shape[1])
        if end <= known:
            return self._normalise(summed, self.mean[first_step:end], self.variance[first_step:end])
        if self.training:
            raise ValueError(f"a sequence of {end} steps in training, but there are statistics for {known}")
        steps = torch.arange(first_step, end).clamp(max=known - 1)
        return self._normalise(summed, self.mean[steps], self.variance[steps])


def weight_norm(
    weight: Float[Tensor, "units inputs"], gain: Float[Tensor, " units"] | None = None
) -> Float[Tensor, "units inputs"]:
    """Divide each unit's incoming weights by their length, then multiply by the unit's gain.

    Source: Salimans & Kingma 2016; Ba et al. 2016, section 5.1 (equation 5 with μ = 0 and σ = ‖w‖).

    Args:
        weight: a row for each unit.
        gain: the length that each row is given; 1 where None.
    """
    direction = weight / torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return direction if gain is None else gain[:, None] * direction
