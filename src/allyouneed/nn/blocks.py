"""Residual compositions: where the normalisation stands, and a block of attention and feed-forward."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from .attention import AttentionPattern
from .layer_cache import LayerCache
from .mixture import is_mixture


class _Residual(nn.Module):
    """What both compositions have: a sublayer, its normalisation, and dropout on the sublayer's output."""

    def __init__(self, sublayer: nn.Module, norm: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.norm = norm
        self.sublayer = sublayer
        self.dropout = nn.Dropout(dropout)

    def _dropped(self, branch: Tensor) -> Tensor:
        # In evaluation dropout hands on what it is given, but the call takes longer than a sum of two vectors.
        return self.dropout(branch) if self.dropout.training else branch


class PreNorm(_Residual):
    """x + sublayer(norm(x)): the norm inside the residual branch (Xiong et al. 2020, table 1, right).

    Args:
        sublayer: attention or feed-forward.
        norm: its normalisation.
        dropout: probability of dropping a coordinate of the sublayer's output in training.
    """

    def forward(
        self, hidden: Float[Tensor, "batch length width"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch length width"]:
        """Add the sublayer's output; further arguments go to the sublayer."""
        return hidden + self._dropped(self.sublayer(self.norm(hidden), *args, **kwargs))


class PostNorm(_Residual):
    """norm(x + sublayer(x)): the norm after the residual sum (Vaswani et al. 2017, section 3.1).

    Args:
        sublayer: attention or feed-forward.
        norm: its normalisation.
        dropout: probability of dropping a coordinate of the sublayer's output in training.
    """

    def forward(
        self, hidden: Float[Tensor, "batch length width"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch length width"]:
        """Add the sublayer's output and normalise; further arguments go to the sublayer."""
        return self.norm(hidden + self._dropped(self.sublayer(hidden, *args, **kwargs)))


class Block(nn.Module):
    """Self-attention, then feed-forward; each comes already wrapped in its residual and norm.

    Args:
        attention: an `Attention` in `PreNorm` or `PostNorm`.
        feed_forward: a feed-forward layer in the same.
    """

    def __init__(self, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    @property
    def window(self) -> int | None:
        """How many tokens one sees at most in its attention layer; None where it sees all."""
        return getattr(getattr(self.attention, "sublayer", None), "window", None)

    def forward(
        self,
        hidden: Float[Tensor, "batch length width"],
        pattern: AttentionPattern | None = None,
        *,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Pass the tokens through both sublayers."""
        return self._position_wise(self.attention(hidden, pattern, cache=cache), pattern)

    def _position_wise(self, hidden: Tensor, pattern: AttentionPattern | None) -> Tensor:
        """Apply the feed-forward layer; a mixture of experts is told what is padding."""
        present = None if pattern is None else pattern.present
        if present is None or not is_mixture(getattr(self.feed_forward, "sublayer", self.feed_forward)):
            return self.feed_forward(hidden)
        return self.feed_forward(hidden, present=present)
