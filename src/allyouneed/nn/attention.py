"""Multi-head attention over a pattern that is worked out once a forward pass and shared by all layers."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .attending import AttendingCache
from .layer_cache import LayerCache
from .positions import PositionScheme, Rotation


@dataclass(frozen=True)
class AttentionPattern:
    """Who looks at whom, and how order enters.

    Attributes:
        mask: added to the scores (float) or True where a query may look (bool); None lets every query look everywhere.
        causal: each query looks at itself and what precedes it, said without a mask so that kernels can skip work.
            Queries and keys must then be the same tokens.
        rotation: rotates queries and keys.
        present: False where a query is padding; None where none is. For layers in which tokens are counted.
    """

    mask: Float[Tensor, "#batch #heads queries keys"] | Bool[Tensor, "#batch #heads queries keys"] | None = None
    causal: bool = False
    rotation: Rotation | None = None
    present: Bool[Tensor, "batch queries"] | None = None
    _narrowed: dict[tuple[int, int, int], "AttentionPattern"] = field(default_factory=dict, repr=False, compare=False)

    def narrowed(self, window: int, queries: int, keys: int, device: torch.device) -> "AttentionPattern":
        """Give the pattern in which a query sees no more than the last `window` tokens, itself counted.

        Worked out once for all layers with the same window. Padding between tokens counts as tokens do.

        Args:
            window: how many tokens a query sees.
            queries: number of tokens that look; they are the last of the keys.
            keys: number of the last tokens that are still there to be looked at, of those that the mask is for.
            device: where to build the mask.
        """
        if keys <= window and (self.mask is None or self.mask.shape[-1] == keys):
            return self
        known = self._narrowed.get((window, queries, keys))
        if known is None:
            mask = None if self.mask is None else self.mask[..., -keys:]
            if keys > window:
                slots = torch.arange(keys, device=device)
                own = slots[keys - queries :, None]
                near = (slots > own - window)[None, None]
                if self.causal:
                    near = near & (slots <= own)
                if mask is None:
                    mask = near
                else:
                    mask = mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, -torch.inf)
            known = AttentionPattern(mask, rotation=self.rotation, present=self.present)
            self._narrowed[window, queries, keys] = known
        return known


def attention_pattern(
    scheme: PositionScheme,
    queries: int,
    keys: int,
    *,
    causal: bool,
    prefix: int = 0,
    present: Bool[Tensor, "batch keys"] | None = None,
    rotation: Rotation | None = None,
    device: torch.device | str | None = None,
) -> AttentionPattern:
    """Join a position scheme's bias, causality and padding into one pattern.

    A bias is between places in the batch, padding included. Padding before or after a row's tokens leaves their
    distances as they are; padding between them (a row that is padded on the right and then continued) does not.

    Args:
        scheme: where the bias comes from.
        queries: number of tokens that look; they are the last of the keys.
        keys: number of tokens that are looked at.
        causal: hide from each query the tokens that follow it.
        prefix: the first so many keys are hidden from none, as in a prefix language model (Raffel et al. 2020, 3.2.1).
        present: False where a key is padding.
        rotation: passed on.
        device: where to build the mask.

    Raises:
        ValueError: more queries than keys, or `present` of another number of keys.
    """
    if queries > keys:
        raise ValueError(f"{queries} queries over {keys} keys: the queries must be the last of the keys")
    if present is not None and present.shape[1] != keys:
        raise ValueError(f"`present` tells of {present.shape[1]} tokens, but there are {keys} keys")
    key_slots = torch.arange(keys, device=device)
    query_slots = key_slots[keys - queries :]
    bias = scheme.bias(query_slots, key_slots)
    if bias is None and present is None and prefix <= 1 and (queries == keys or queries == 1 or not causal):
        # A single query is the last token, from which nothing is hidden.
        return AttentionPattern(causal=causal and queries == keys > 1, rotation=rotation)
    allowed = None
    if causal and queries > 1:
        allowed = ((key_slots <= query_slots[:, None]) | (key_slots < prefix))[None, None]
    if present is not None:
        # A padded query looks at itself: its output is thrown away, and an empty softmax would be NaN.
        own = key_slots == query_slots[:, None]
        seen = present[:, None, None, :] | own
        allowed = seen if allowed is None else allowed & seen
    there = None if present is None else present[:, keys - queries :]
    mask = allowed
    if bias is not None:
        mask = bias[None] if allowed is None else bias[None].masked_fill(~allowed, -torch.inf)
    return AttentionPattern(mask=mask, rotation=rotation, present=there)


def fused_attention(
    query: Float[Tensor, "batch heads queries head_width"],
    key: Float[Tensor, "batch heads keys head_width"],
    value: Float[Tensor, "batch heads keys head_width"],
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads queries head_width"]:
    """Compute attention by torch's fused kernels, in the precision that is fastest on the device."""
    dtype = query.dtype
    if query.device.type == "cpu" and dtype != torch.float64 and torch.is_grad_enabled():
        # On CPUs the backward pass in 16 bits takes more than twice as long as in 32.
        query, key, value = query.float(), key.float(), value.float()
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(query.dtype)
    # Where autocast is off already, switching it off would take as long as attention to a few tokens.
    with torch.autocast(query.device.type, enabled=False) if _autocasts(query) else nullcontext():
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal
        )
    return mixed.to(dtype)


def _autocasts(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2), with grouped keys and values.

    Args:
        width: width of the residual stream.
        heads: number of query heads; divides the width.
        key_value_heads: number of key and value heads; divides `heads`. Equal to `heads` where None
            (Ainslie et al. 2023, grouped-query attention).
        head_width: width of each head; an even share of the width where None.
        bias: whether the projections have biases.
        output_bias: whether the output projection has one; as the others where None.
        query_norm: normalises each head's queries, before they are rotated (Dehghani et al. 2023, section 2); None for
            no normalisation.
        key_norm: the same for keys.
        window: a token sees no more than this many tokens, itself and those before it (Beltagy et al. 2020, section
            3.1); all where None. For causal attention.
        dropout: probability of dropping an attention weight in training.
        kernel: computes attention from query, key, value as `torch.nn.functional.scaled_dot_product_attention` does,
            with its keywords `attn_mask`, `dropout_p` and `is_causal`.

    Raises:
        ValueError: heads that do not divide evenly, or a window below 1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        kernel: Callable[..., Tensor] = fused_attention,
    ):
        super().__init__()
        key_value_heads = heads if key_value_heads is None else key_value_heads
        if heads < 1 or (head_width is None and width % heads):
            raise ValueError(f"width {width} cannot be divided among {heads} heads: it must be a multiple of them")
        if head_width is not None and head_width < 1:
            raise ValueError(f"head_width {head_width} is out of range: it must be at least 1")
        if key_value_heads < 1 or heads % key_value_heads:
            raise ValueError(f"{heads} heads cannot share {key_value_heads} key-value heads: it must be a multiple")
        if window is not None and window < 1:
            raise ValueError(f"window {window} is out of range: it must be at least 1, since a token sees itself")
        self.heads = heads
        self.key_value_heads = key_value_heads
        self.head_width = width // heads if head_width is None else head_width
        self.dropout = dropout
        self.kernel = kernel
        self.query: Any = nn.Linear(width, heads * self.head_width, bias=bias)
        self.key: Any = nn.Linear(width, key_value_heads * self.head_width, bias=bias)
        self.value: Any = nn.Linear(width, key_value_heads * self.head_width, bias=bias)
        self.output = nn.Linear(heads * self.head_width, width, bias=bias if output_bias is None else output_bias)
        self.query_norm = query_norm
        self.key_norm = key_norm
        self.window = window
        self.joint: nn.Module | None = None

    def join(self, joint: nn.Module) -> None:
        """Compute query, key and value by one projection, outputs side by side, in place of their own."""
        self.joint = joint
        self.query = self.key = self.value = None

    def forward(
        self,
        hidden: Float[Tensor, "batch queries width"],
        pattern: AttentionPattern | None = None,
        *,
        source: Float[Tensor, "batch keys width"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """Let each token of `hidden` look at the tokens of `source` (of `hidden` itself where None).

        Args:
            hidden: the tokens that look.
            pattern: who looks at whom; everyone at everyone where None.
            source: the tokens that are looked at, in cross-attention.
            cache: keys and values of earlier tokens; those of this call are appended. An `AttendingCache` also takes
                the place of the pattern's mask and of the kernel.
        """
        pattern = pattern or AttentionPattern()
        if _autocasts(hidden):
            # Once here, and not by each of the projections that read them.
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
            source = None if source is None else source.to(hidden.dtype)
        query, key, value = self._project(hidden, source, pattern.rotation)
        if isinstance(cache, AttendingCache):
            return self.output(cache.attend(query, key, value).transpose(1, 2).flatten(2))
        if cache is not None:
            key, value = cache.append(key, value)
        if self.window is not None:
            pattern = pattern.narrowed(self.window, query.shape[2], key.shape[2], query.device)
        groups = self.heads // self.key_value_heads
        if groups > 1 and query.shape[2] == 1 and self.kernel is fused_attention and not torch.is_grad_enabled():
            mixed = self._single_query(query, key, value, pattern.mask, groups)
            return self.output(mixed.reshape(*hidden.shape[:2], -1))
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        mixed = self.kernel(
            query,
            key,
            value,
            attn_mask=pattern.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=pattern.causal,
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _project(
        self, hidden: Tensor, source: Tensor | None, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.joint is not None:
            return self._project_jointly(self.joint, hidden, source, rotation)
        looked_at = hidden if source is None else source
        query = self._split(self.query(hidden), self.heads)
        key = self._split(self.key(looked_at), self.key_value_heads)
        value = self._split(self.value(looked_at), self.key_value_heads)
        query, key = self._normalise(query, key)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        return query, key, value

    def _project_jointly(
        self, joint: nn.Module, hidden: Tensor, source: Tensor | None, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rotating = self.heads + self.key_value_heads
        heads = self._split(joint(hidden), rotating + self.key_value_heads)
        rotated, value = heads.split_with_sizes((rotating, self.key_value_heads), dim=1)
        if source is not None:
            of_source = self._split(joint(source), rotating + self.key_value_heads)
            query = rotated[:, : self.heads]
            key, value = of_source[:, self.heads : rotating], of_source[:, rotating:]
            query, key = self._normalise(query, key)
            return (query, key, value) if rotation is None else (rotation(query), rotation(key), value)
        if self.query_norm is None and self.key_norm is None:
            # Both at once, in half the calls.
            rotated = rotated if rotation is None else rotation(rotated)
            query, key = rotated.split_with_sizes((self.heads, self.key_value_heads), dim=1)
            return query, key, value
        query, key = self._normalise(*rotated.split_with_sizes((self.heads, self.key_value_heads), dim=1))
        return (query, key, value) if rotation is None else (rotation(query), rotation(key), value)

    def _normalise(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query = query if self.query_norm is None else self.query_norm(query)
        return query, key if self.key_norm is None else self.key_norm(key)

    def _single_query(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int) -> Tensor:
        """Let the query heads that share keys look at them as if they were as many queries: nothing is repeated."""
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(len(mask), self.key_value_heads, groups, mask.shape[3])
        query = query.reshape(len(query), self.key_value_heads, groups, self.head_width)
        return self.kernel(query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)

    def _split(self, projected: Tensor, heads: int) -> Tensor:
        batch, length, _ = projected.shape
        return projected.reshape(batch, length, heads, self.head_width).transpose(1, 2)
