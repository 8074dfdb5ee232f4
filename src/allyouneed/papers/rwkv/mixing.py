"""Time-mixing and channel-mixing: what stands in a block of RWKV for attention and for the feed-forward layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .state import LayerState, Shift
from .wkv import Wkv, WkvState


def _mix(width: int) -> nn.Parameter:
    # Of this shape in checkpoints.
    return nn.Parameter(torch.ones(1, 1, width))


class TimeMixing(nn.Module):
    """What stands in for attention: gated averages of past values (section 3.1, equations 11 to 13, 16 and 17).

    Args:
        width: of the residual stream.
        channels: of the averages.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.mix_key, self.mix_value, self.mix_receptance = _mix(width), _mix(width), _mix(width)
        # w is the exponential of what is learned, and so not negative.
        self.decay_logarithm = nn.Parameter(torch.zeros(channels))
        self.bonus = nn.Parameter(torch.zeros(channels))
        self.key = nn.Linear(width, channels, bias=False)
        self.value = nn.Linear(width, channels, bias=False)
        self.receptance = nn.Linear(width, channels, bias=False)
        self.output = nn.Linear(channels, width, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "batch length width"],
        carried: Float[Tensor, "batch width"],
        state: WkvState | None,
        *,
        shift: Shift,
        form: Wkv,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch width"], WkvState]:
        """Give what is added to the residual stream, the last input and the state after it.

        Args:
            hidden: the inputs.
            carried: the last input before them.
            state: the sums before them.
            shift: which token comes before each.
            form: computes WKV.
        """
        before, last = shift(hidden, carried)
        key = self.key(before.lerp(hidden, self.mix_key))
        value = self.value(before.lerp(hidden, self.mix_value))
        gate = self.receptance(before.lerp(hidden, self.mix_receptance)).sigmoid()
        # In the type of the sums: an exponential of 16 bits would be off by a hundredth.
        decay, bonus = self.decay_logarithm.to(torch.promote_types(hidden.dtype, torch.float32)).exp(), self.bonus
        averages, state = form(decay, bonus, key, value, state, shift.present)
        return self.output(gate * averages), last, state


class ChannelMixing(nn.Module):
    """What stands in for the feed-forward layer: a gated one with squared ReLU (equations 14, 15 and 18).

    Args:
        width: of the residual stream.
        hidden: inner width.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mix_key, self.mix_receptance = _mix(width), _mix(width)
        self.key = nn.Linear(width, hidden, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(hidden, width, bias=False)

    def forward(
        self, hidden: Float[Tensor, "batch length width"], carried: Float[Tensor, "batch width"], *, shift: Shift
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch width"]]:
        """Give what is added to the residual stream, and the last input; arguments as in `TimeMixing`."""
        before, last = shift(hidden, carried)
        key = self.key(before.lerp(hidden, self.mix_key)).relu().square()
        gate = self.receptance(before.lerp(hidden, self.mix_receptance)).sigmoid()
        return gate * self.value(key), last


class RwkvBlock(nn.Module):
    """Time-mixing, then channel-mixing, each in a pre-norm residual branch (figure 2).

    Args:
        width: of the residual stream.
        channels: of time-mixing's averages.
        hidden: inner width of channel-mixing.
        epsilon: of the norms.
    """

    def __init__(self, width: int, channels: int, hidden: int, epsilon: float):
        super().__init__()
        self.time_norm = nn.LayerNorm(width, eps=epsilon)
        self.time_mixing = TimeMixing(width, channels)
        self.channel_norm = nn.LayerNorm(width, eps=epsilon)
        self.channel_mixing = ChannelMixing(width, hidden)

    def forward(
        self, stream: Float[Tensor, "batch length width"], state: LayerState | None, *, shift: Shift, form: Wkv
    ) -> tuple[Float[Tensor, "batch length width"], LayerState]:
        """Pass the tokens through both, and give what is to be carried on."""
        if state is None:
            # Before the first token there is nothing: zeros for it, and the empty sums that WKV makes by itself.
            time_input = channel_input = stream.new_zeros(stream.shape[0], stream.shape[2])
            sums = None
        else:
            time_input, channel_input, sums = state.time_input, state.channel_input, state.wkv
        added, time_input, sums = self.time_mixing(self.time_norm(stream), time_input, sums, shift=shift, form=form)
        stream = stream + added
        added, channel_input = self.channel_mixing(self.channel_norm(stream), channel_input, shift=shift)
        return stream + added, LayerState(time_input, channel_input, sums)
