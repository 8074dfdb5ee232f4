"""What a recurrent language model carries from token to token: as much after one token as after a million."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .wkv import WkvState


@dataclass(frozen=True)
class LayerState:
    """What one layer carries: the five vectors of appendix D.

    Attributes:
        time_input: the last input of time-mixing.
        channel_input: the last input of channel-mixing.
        wkv: numerator, denominator and exponent.
    """

    time_input: Float[Tensor, "batch width"]
    channel_input: Float[Tensor, "batch width"]
    wkv: WkvState

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The five vectors of each row."""
        return (self.time_input, self.channel_input, *self.wkv)

    def select(self, rows: Int[Tensor, " rows"]) -> "LayerState":
        """Give the state of some rows, in this order."""
        time, channel, *sums = (tensor.index_select(0, rows) for tensor in self.tensors)
        return LayerState(time, channel, WkvState(*sums))


class RwkvState:
    """The states of all layers, in the place that a key-value cache has in a transformer.

    Args:
        layers: how many there are.
        limit: the most tokens that a row may take in, padding counted; no limit where None. They take no memory.

    Attributes:
        layers: what each carries; None before the first token.
        limit: as given.
    """

    def __init__(self, layers: int, limit: int | None = None):
        self.layers: list[LayerState | None] = [None] * layers
        self.limit = limit
        self._length = 0

    def __len__(self) -> int:
        """Count the tokens taken in by each sequence, padding included."""
        return self._length

    @property
    def nbytes(self) -> int:
        """How many bytes are carried, for all rows."""
        return sum(tensor.nbytes for layer in self.layers if layer is not None for tensor in layer.tensors)

    def check(self, batch: int, new: int) -> None:
        """Refuse tokens that cannot be taken in.

        Raises:
            ValueError: another batch than before, or more tokens than the limit.
        """
        first = self.layers[0]
        if first is not None and len(first.time_input) != batch:
            raise ValueError(f"the state is that of a batch of {len(first.time_input)}, not of {batch}")
        if self.limit is not None and self._length + new > self.limit:
            raise ValueError(
                f"the state is limited to {self.limit} tokens and would have taken in {self._length + new}"
            )

    def advance(self, layers: Sequence[LayerState], new: int) -> None:
        """Set what the layers carry after `new` more tokens."""
        self.layers = list(layers)
        self._length += new

    @property
    def shortest(self) -> int:
        """The fewest tokens that `truncate` can leave, but for none: all that were taken in."""
        return self._length

    def truncate(self, length: int) -> None:
        """Go back to the beginning, or stay: a sum does not say what it was before the last token.

        Raises:
            ValueError: any other length than 0 or the present one.
        """
        if length not in (0, self._length):
            raise ValueError(
                f"a recurrent state of {self._length} tokens cannot be cut to {length}: what earlier tokens added "
                "cannot be told apart. Keep a branch of the state at that place, or cut to 0"
            )
        if length == 0:
            self.layers = [None for _ in self.layers]
            self._length = 0

    def branch(self, rows: Sequence[int]) -> "RwkvState":
        """Make a state whose rows go on from rows of this one, which stays as it is.

        Args:
            rows: the row of this state from which each row of the new one goes on; one may be there many times.

        Raises:
            ValueError: no rows, or a row that the state does not have.
        """
        if len(rows) == 0:
            raise ValueError("a state cannot be branched into no rows: name at least one")
        branched = RwkvState(len(self.layers), self.limit)
        branched._length = self._length
        for index, layer in enumerate(self.layers):
            if layer is not None:
                held = len(layer.time_input)
                outside = next((row for row in rows if not 0 <= row < held), None)
                if outside is not None:
                    raise ValueError(f"row {outside} is not in the state: it holds rows 0 to {held - 1}")
                branched.layers[index] = layer.select(torch.tensor(rows, device=layer.time_input.device))
        return branched


@dataclass(frozen=True)
class Shift:
    """Which token comes before each: where nothing is padding, the one to its left.

    Attributes:
        present: False where a token is padding; None where none is.
        previous: for each token the last present one before it, counted from 1; 0 is what was carried.
        last: the same for what comes next.
    """

    present: Bool[Tensor, "batch length"] | None = None
    previous: Int[Tensor, "batch length"] | None = None
    last: Int[Tensor, " batch"] | None = None

    @classmethod
    def over(cls, present: Bool[Tensor, "batch length"] | None) -> "Shift":
        """Work it out once for all layers."""
        if present is None:
            return cls()
        places = torch.arange(1, present.shape[1] + 1, device=present.device)
        latest = torch.nn.functional.pad((places * present).cummax(1).values, (1, 0))
        return cls(present, latest[:, :-1], latest[:, -1])

    def __call__(
        self, hidden: Float[Tensor, "batch length width"], carried: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch width"]]:
        """Give the vector of the token before each, and the last one's, which is to be carried."""
        if self.previous is None or self.last is None:
            # A copy, or what is carried would hold the vectors of all tokens in memory.
            return torch.cat((carried[:, None], hidden[:, :-1]), 1), hidden[:, -1].clone()
        joined = torch.cat((carried[:, None], hidden), 1)
        width = hidden.shape[-1]
        before = joined.gather(1, self.previous[:, :, None].expand(-1, -1, width))
        return before, joined.gather(1, self.last[:, None, None].expand(-1, 1, width)).squeeze(1)
