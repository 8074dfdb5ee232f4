"""LSTM and GRU with a norm on each contribution to their gates: layer norm, another, or none."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layer_norm import LayerNorm

MakeNorm = Callable[[int], nn.Module]
"""Makes the norm of a number of units: `LayerNorm`, or `nn.Identity` for none."""

LSTMState = tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]


class StepNorm(nn.Module, ABC):
    """A norm that differs from one time step to the next, and so has to be told where it is."""

    @abstractmethod
    def forward(self, summed: Float[Tensor, "batch *steps units"], first_step: int) -> Float[Tensor, "..."]:
        """Normalise the summed inputs of one step (no axis of steps), or of several from `first_step` on."""


def _normalise(norm: nn.Module, summed: Tensor, step: int) -> Tensor:
    return norm(summed, step) if isinstance(norm, StepNorm) else norm(summed)


class _Recurrent(nn.Module):
    """What both cells share: their weights, and the direction of time."""

    def __init__(self, inputs: int, hidden: int, gates: int, reverse: bool):
        super().__init__()
        if inputs < 1 or hidden < 1:
            raise ValueError(f"{inputs} inputs and {hidden} hidden units: there must be at least one of each")
        self.inputs, self.hidden, self.reverse = inputs, hidden, reverse
        self.input_weight = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.hidden_weight = nn.Parameter(torch.empty(gates * hidden, hidden))
        # Gate by gate, each its own matrix: orthogonal from state to state keeps the norm of what returns.
        for to_gate in self.input_weight.split(hidden):
            nn.init.xavier_uniform_(to_gate)
        for to_gate in self.hidden_weight.split(hidden):
            nn.init.orthogonal_(to_gate)

    def _in_time(self, inputs: Tensor) -> Tensor:
        """Put the inputs in the order in which they are read."""
        if inputs.shape[1] == 0 or inputs.shape[2] != self.inputs:
            raise ValueError(
                f"inputs of shape {tuple(inputs.shape)}: they must have one step or more, each of width {self.inputs}"
            )
        return inputs.flip(1) if self.reverse else inputs

    def _stacked(self, outputs: list[Tensor]) -> Tensor:
        """Put the outputs back in the order of the inputs."""
        return torch.stack(outputs[::-1] if self.reverse else outputs, dim=1)


class LSTM(_Recurrent):
    """A layer of long short-term memory, its three contributions normalised.

    Source: Ba et al. 2016, equations 20 to 22; with `nn.Identity` as the norm, the plain LSTM of equations 17 to 19.
    The norms over the gates see all four of them as one vector; the cell is normalised where it is read, never where it
    is kept. The rows of the weights are the gates f, i, o, g.

    Args:
        inputs: width of the input.
        hidden: width of the state.
        norm: makes each of the three norms.
        forget_bias: of the forget gate, at first.
        reverse: whether to read from the last step to the first.

    Raises:
        ValueError: no inputs or no hidden units.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        norm: MakeNorm = LayerNorm,
        *,
        forget_bias: float = 1.0,
        reverse: bool = False,
    ):
        super().__init__(inputs, hidden, 4, reverse)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        nn.init.constant_(self.bias[:hidden], forget_bias)
        self.hidden_norm, self.input_norm, self.cell_norm = norm(4 * hidden), norm(4 * hidden), norm(hidden)

    def forward(
        self, inputs: Float[Tensor, "batch length inputs"], state: LSTMState | None = None
    ) -> tuple[Float[Tensor, "batch length hidden"], LSTMState]:
        """Read sequences; return the output of each step, and the last output and cell.

        Args:
            inputs: the sequences.
            state: output and cell before the first step read; zeros where None.

        Raises:
            ValueError: inputs without a step, or of another width.
        """
        inputs = self._in_time(inputs)
        # All steps at once, for this contribution does not wait for the state.
        from_input = _normalise(self.input_norm, F.linear(inputs, self.input_weight), 0) + self.bias
        zeros = from_input.new_zeros(len(inputs), self.hidden)
        output, cell = (zeros, zeros) if state is None else state
        outputs = []
        for step, summed in enumerate(from_input.unbind(1)):
            summed = summed + _normalise(self.hidden_norm, F.linear(output, self.hidden_weight), step)
            forget, write, read = summed[:, : 3 * self.hidden].sigmoid().chunk(3, dim=1)
            cell = forget * cell + write * summed[:, 3 * self.hidden :].tanh()
            output = read * _normalise(self.cell_norm, cell, step).tanh()
            outputs.append(output)
        return self._stacked(outputs), (output, cell)


class GRU(_Recurrent):
    """A layer of gated recurrent units, its four contributions normalised.

    Source: Ba et al. 2016, equations 26 to 28; with `nn.Identity` as the norm, the plain GRU of equations 23 to 25,
    which has no biases; with `Bias`, the usual one. The rows of the weights are the gates z and r, then the candidate
    (W and U in the paper). Here z = 1 takes the candidate whole, where PyTorch's GRU keeps the state.

    Args:
        inputs: width of the input.
        hidden: width of the state.
        norm: makes each of the four norms.
        reverse: whether to read from the last step to the first.

    Raises:
        ValueError: no inputs or no hidden units.
    """

    def __init__(self, inputs: int, hidden: int, norm: MakeNorm = LayerNorm, *, reverse: bool = False):
        super().__init__(inputs, hidden, 3, reverse)
        self.hidden_norm, self.input_norm = norm(2 * hidden), norm(2 * hidden)
        self.candidate_input_norm, self.candidate_hidden_norm = norm(hidden), norm(hidden)

    def forward(
        self, inputs: Float[Tensor, "batch length inputs"], state: Float[Tensor, "batch hidden"] | None = None
    ) -> tuple[Float[Tensor, "batch length hidden"], Float[Tensor, "batch hidden"]]:
        """Read sequences; return the output of each step, and the last.

        Args:
            inputs: the sequences.
            state: output before the first step read; zeros where None.

        Raises:
            ValueError: inputs without a step, or of another width.
        """
        inputs = self._in_time(inputs)
        sizes = [2 * self.hidden, self.hidden]
        to_gates, to_candidate = F.linear(inputs, self.input_weight).split(sizes, dim=2)
        gates_from_input = _normalise(self.input_norm, to_gates, 0)
        candidate_from_input = _normalise(self.candidate_input_norm, to_candidate, 0)
        output = to_gates.new_zeros(len(inputs), self.hidden) if state is None else state
        outputs = []
        for step, (gates, candidate) in enumerate(
            zip(gates_from_input.unbind(1), candidate_from_input.unbind(1), strict=True)
        ):
            to_gates, to_candidate = F.linear(output, self.hidden_weight).split(sizes, dim=1)
            update, reset = (gates + _normalise(self.hidden_norm, to_gates, step)).sigmoid().chunk(2, dim=1)
            returned = _normalise(self.candidate_hidden_norm, to_candidate, step)
            output = torch.lerp(output, (candidate + reset * returned).tanh(), update)
            outputs.append(output)
        return self._stacked(outputs), output


class Bias(nn.Module):
    """What remains of a norm that does not normalise: a bias for each unit, 0 at first.

    Args:
        units: of the layer.
    """

    def __init__(self, units: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, summed: Float[Tensor, "*axes units"]) -> Float[Tensor, "*axes units"]:
        """Add the bias."""
        return summed + self.bias
