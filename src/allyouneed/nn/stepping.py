"""One token at a time through a quantised block, in as few calls as torch allows.

Where a model writes a token at a time in 4 or 8 bits, multiplying takes little more than half of the time; the rest
goes into the calls between, some eighty a block. `SteppingBlock` computes what its parts would, without asking each.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attending import AttendingCache
from .attention import Attention, AttentionPattern, fused_attention
from .blocks import Block, PreNorm
from .feed_forward import GatedFeedForward
from .layer_cache import LayerCache
from .normalisation import RMSNorm
from .positions import Rotation
from .quantized import QuantizedLinear

_ZERO = torch.zeros(())
_attend: Any = torch.nn.functional.scaled_dot_product_attention


class SteppingBlock(Block):
    """A block with a shorter way for a single token in 32 bits; everything else goes the usual way.

    Made by `step_quickly`, never constructed: it shares all that the block has. Hooks on parts within the block do not
    see what goes the shorter way.
    """

    def forward(
        self,
        hidden: Float[Tensor, "batch length width"],
        pattern: AttentionPattern | None = None,
        *,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Pass the tokens through both sublayers."""
        if (
            cache is None
            or isinstance(cache, AttendingCache)
            or pattern is None
            or pattern.mask is not None
            or pattern.rotation is None
            or hidden.numel() != hidden.shape[-1]
            or hidden.dtype != torch.float32
            or not hidden.is_cpu
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(hidden, pattern, cache=cache)
        shape, hidden = hidden.shape, hidden.view(-1)
        hidden = hidden + self._attended(hidden, pattern.rotation, cache)
        return (hidden + self._fed_forward(hidden)).view(shape)

    def _attended(self, hidden: Tensor, rotation: Rotation, cache: LayerCache) -> Tensor:
        residual: Any = self.attention
        layer: Any = residual.sublayer
        queries, shared, width = layer.heads, layer.key_value_heads, layer.head_width
        projected = layer.joint.single(_normalised(hidden, residual.norm)).float()
        if layer.joint.bias is not None:
            projected += layer.joint.bias
        heads = projected.view(-1, width)
        rotated, values = heads.split_with_sizes((queries + shared, shared))
        rotated = rotation.single(rotated)
        query, keys = rotated.split_with_sizes((queries, shared))
        keys, values = cache.append(keys.view(1, shared, 1, width), values.view(1, shared, 1, width))
        # The query heads that share keys look at them as if they were as many queries.
        return layer.output.single(_attend(query.view(1, shared, -1, width), keys, values).reshape(-1))

    def _fed_forward(self, hidden: Tensor) -> Tensor:
        residual: Any = self.feed_forward
        layer: Any = residual.sublayer
        gate, inner = layer.joint.single(_normalised(hidden, residual.norm)).float().chunk(2)
        return layer.output.single(layer.activation(gate).mul_(inner))


def step_quickly(model: nn.Module) -> nn.Module:
    """Let blocks of joined, quantised linear layers take the shorter way, in place; give the model back.

    These are pre-norm blocks of grouped attention and a gated feed-forward layer with RMS norms, as LLaMA's and Qwen2's
    are, whose linear layers the packed kernel runs; queries, keys and values may have biases, layers windows. Names,
    values and results stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is Block and _can_step(child):
                stepping = SteppingBlock.__new__(SteppingBlock)
                # The very same parts, hooks and modes.
                stepping.__dict__ = child.__dict__
                setattr(parent, name, stepping)
    return model


def _can_step(block: Block) -> bool:
    residuals: list[Any] = [block.attention, block.feed_forward]
    if not all(isinstance(residual, PreNorm) and isinstance(residual.norm, RMSNorm) for residual in residuals):
        return False
    if any(residual.dropout.p or residual.norm.weight.dtype != torch.float32 for residual in residuals):
        return False
    attention, feed_forward = (residual.sublayer for residual in residuals)
    return (
        type(attention) is Attention
        and attention.kernel is fused_attention
        and not attention.dropout
        and attention.query_norm is None
        and attention.key_norm is None
        and type(feed_forward) is GatedFeedForward
        and all(
            isinstance(linear, QuantizedLinear)
            and linear.kernel == "packed 4-bit"
            and (linear.bias is None or linear is attention.joint)
            for linear in (attention.joint, attention.output, feed_forward.joint, feed_forward.output)
        )
    )


def _normalised(vector: Tensor, norm: RMSNorm) -> Tensor:
    return torch.addcmul(_ZERO, vector, norm.weight, value=norm.scale_of(vector))
