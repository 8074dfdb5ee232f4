"""From the tokens' vectors to one vector for a sentence: pooling, dense layers, and length one.

Source: Reimers & Gurevych 2019, section 3, and their library.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allyouneed.nn import ACTIVATIONS

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
MODES: tuple[str, ...] = get_args(Mode)


def _cls(hidden: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), pooled.int().argmax(1)]


def _max(hidden: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
    return hidden.masked_fill(~pooled[..., None], -torch.inf).amax(1)


def _mean(hidden: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
    return (hidden * pooled[..., None]).sum(1) / pooled.sum(1, keepdim=True).clamp(min=1e-9)


def _mean_sqrt(hidden: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
    return (hidden * pooled[..., None]).sum(1) / pooled.sum(1, keepdim=True).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
    # Places count from 1; those of a prompt that is left out are counted all the same.
    weights = (present.cumsum(1) * pooled)[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _last_token(hidden: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
    places = torch.arange(hidden.shape[1], device=hidden.device)
    return hidden[torch.arange(len(hidden)), (places * pooled).argmax(1)]


_POOLED: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "cls": _cls,
        "max": _max,
        "mean": _mean,
        "mean_sqrt_len_tokens": _mean_sqrt,
        "weightedmean": _weighted_mean,
        "lasttoken": _last_token,
    }
)


class Pooling(nn.Module):
    """One vector of the vectors of a sentence's tokens, special tokens included.

    Args:
        modes: how, by the names of sentence-transformers: the first token's ("cls"), the last one's ("lasttoken"), the
            largest value of each coordinate ("max"), the mean ("mean"), the sum over the root of the number of tokens
            ("mean_sqrt_len_tokens"), or the mean weighted by 1 for the first token, 2 for the second and so on
            ("weightedmean"). Several are put side by side.
        include_prompt: whether the tokens of a prompt before the sentence count, with the special token before it.

    Raises:
        ValueError: no mode, or one of another name.
    """

    def __init__(self, modes: Sequence[str] = ("mean",), *, include_prompt: bool = True):
        super().__init__()
        self.modes = tuple(modes)
        self.include_prompt = include_prompt
        if not self.modes or not set(self.modes) <= set(MODES):
            raise ValueError(f"modes are {list(self.modes)}; they must be one or more of {', '.join(MODES)}")

    def forward(
        self, hidden: Float[Tensor, "batch length width"], present: Bool[Tensor, "batch length"], prompt: int = 0
    ) -> Float[Tensor, "batch pooled"]:
        """Pool the vectors.

        Args:
            hidden: of the tokens.
            present: False where a token is padding, which is on the right.
            prompt: tokens of the prompt, with the special token before it.
        """
        pooled = present.clone()
        if not self.include_prompt:
            pooled[:, :prompt] = False
        return torch.cat([_POOLED[mode](hidden, present, pooled) for mode in self.modes], -1)

    def extra_repr(self) -> str:
        """Give the modes."""
        return ", ".join(self.modes)


class Dense(nn.Module):
    """A linear layer and an activation, and where asked for what came in, added again.

    Args:
        inputs: width of what comes in.
        outputs: width of what comes out.
        activation: a name in `nn.ACTIVATIONS`.
        bias: whether the layer has one.
        residual: whether what comes in is added to what comes out, through a linear layer of its own without a bias
            where the widths differ.
    """

    def __init__(
        self, inputs: int, outputs: int, *, activation: str = "tanh", bias: bool = True, residual: bool = False
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.with_residual = residual
        self.residual = nn.Linear(inputs, outputs, bias=False) if residual and inputs != outputs else None

    def forward(self, vectors: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Map the vectors."""
        mapped = self.activation(self.linear(vectors))
        if not self.with_residual:
            return mapped
        return mapped + (vectors if self.residual is None else self.residual(vectors))


class Normalize(nn.Module):
    """Scale vectors to length one."""

    def forward(self, vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Scale the vectors."""
        return F.normalize(vectors, dim=-1)
