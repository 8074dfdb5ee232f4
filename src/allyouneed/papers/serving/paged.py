"""Paged attention: keys and values in blocks that lie anywhere, and one forward pass over chunks of many sequences.

A step takes tokens of several sequences, of each as many as the scheduler chose, side by side in one row. All but
attention treats them alike; attention reads each sequence's blocks through its table.

What a token is given depends on its own sequence alone, to the last bit, in 32 bits on a CPU and by the packed kernels
for few bits: not on who else is in the step, not on where a prompt was cut, not on which blocks were cached and which
computed. So tokens attend one by one, each to whole blocks, of which those after it are masked; and a step has at least
two rows, since products of matrices and of a matrix with one vector are rounded differently.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from allyouneed.nn import (
    AttendingCache,
    AttentionPattern,
    Decoder,
    Int4Linear,
    Int8Linear,
    PositionScheme,
)

from .blocks import BlockPool, BlockTable
from .costs import attention_layers


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence that a step computes.

    Attributes:
        tokens: those after what is in the cache; at least one.
        table: of the sequence, with room reserved for the tokens.
        wanted: logits are wanted after the last so many of the tokens.
    """

    tokens: Sequence[int]
    table: BlockTable
    wanted: int


@dataclass(frozen=True)
class _Reading:
    """What queries of one segment that lie in one block read: its blocks from the first up to their own.

    Attributes:
        masks: added to the scores, one for each window that layers have.
        views: each layer's keys and values where the blocks lie side by side in the cache; else nothing.
        gather: of the others, the number of the gather that fetches the blocks.
    """

    masks: list[Float[Tensor, "queries #key_value_heads #groups keys"]]
    views: list[tuple[Tensor, Tensor]]
    gather: int


@dataclass(frozen=True)
class _AttentionMetadata:
    """What all layers must know of a step.

    Attributes:
        slots: where each token's key and value go.
        readings: who reads what, in the order of the tokens.
        rows: how many tokens each reading is for.
        gathers: blocks of sequences whose blocks do not lie side by side.
    """

    slots: Int[Tensor, " tokens"]
    readings: list[_Reading]
    rows: list[int]
    gathers: list[Int[Tensor, " _"]]


class PagedCache:
    """The keys and values of all layers, in blocks.

    Args:
        model: whose they are.
        pool: owns the blocks.

    Raises:
        ValueError: a model whose layers are not alike, or not each with one attention layer; or positions that depend
            on the length of the sequence, so that a block's keys would be others in a longer one.
    """

    def __init__(self, model: Decoder, pool: BlockPool):
        layers = attention_layers(model)
        if model.positions.length_dependent:
            raise ValueError(
                "rotary positions whose scaling depends on the sequence's length ('dynamic', or 'longrope' with two "
                "lists) cannot be paged: keys in a block would be others in a longer sequence"
            )
        # What a window hides is masked; its blocks are held all the same.
        self.windows = list(dict.fromkeys(layer.window for layer in layers))
        self.pool = pool
        self.heads, self.key_value_heads = layers[0].heads, layers[0].key_value_heads
        like = next(model.parameters())
        self.store: Float[Tensor, "layers 2 key_value_heads slots head_width"] = torch.zeros(
            len(layers),
            2,
            self.key_value_heads,
            pool.blocks * pool.size,
            layers[0].head_width,
            dtype=like.dtype,
            device=like.device,
        )
        self.layers = [
            _PagedLayer(number, self, self.windows.index(layer.window)) for number, layer in enumerate(layers)
        ]
        self.plan: _AttentionMetadata | None = None
        size = pool.size
        later = torch.ones(size, size, dtype=torch.bool, device=like.device).triu(1)
        # Row i hides from the i-th token of a block those after it.
        self._own_block = torch.zeros(size, size, dtype=like.dtype, device=like.device).masked_fill(later, -torch.inf)

    @property
    def blocks(self) -> Float[Tensor, "layers 2 key_value_heads blocks size head_width"]:
        """The store, block by block."""
        return self.store.unflatten(3, (self.pool.blocks, self.pool.size))

    def clear(self, blocks: Sequence[int]) -> None:
        """Make blocks zero: what is masked must still be finite, and a sequence that overflowed may have left other."""
        if blocks:
            self.blocks.index_fill_(3, torch.tensor(blocks, device=self.store.device), 0.0)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the first block of each pair into the second."""
        for source, target in pairs:
            self.blocks[:, :, :, target] = self.blocks[:, :, :, source]

    def begin(self, segments: Sequence[Segment], scheme: PositionScheme) -> None:
        """Work out what all layers must know of a step."""
        size, device = self.pool.size, self.store.device
        slots: list[int] = []
        readings: list[_Reading] = []
        rows: list[int] = []
        gathers: list[Tensor] = []
        for segment in segments:
            start, end = segment.table.length, segment.table.length + len(segment.tokens)
            blocks = segment.table.blocks[: -(-end // size)]
            scattered = any(block != blocks[0] + place for place, block in enumerate(blocks))
            if scattered:
                gathers.append(torch.tensor(blocks, device=device))
            for place in range(start // size, len(blocks)):
                low, high, keys = max(start, place * size), min(end, (place + 1) * size), (place + 1) * size
                # For all layers at once: looking at each anew would be a quarter of the time of attention.
                views = [] if scattered else list(_views(self.store, blocks[0] * size, keys, high - low))
                readings.append(_Reading(self._masks(low, high, keys, scheme), views, len(gathers) - 1))
                rows.append(high - low)
            slots += [blocks[place // size] * size + place % size for place in range(start, end)]
        self.plan = _AttentionMetadata(torch.tensor(slots, device=device), readings, rows, gathers)

    def tables(self, segments: Sequence[Segment]) -> tuple[Int[Tensor, "tokens blocks"], Int[Tensor, " tokens"]]:
        """Give each token's blocks, and how many tokens it looks at, itself included."""
        most = max(len(segment.table.blocks) for segment in segments)
        rows = [own.table.blocks + [0] * (most - len(own.table.blocks)) for own in segments for _ in own.tokens]
        counts = [own.table.length + place + 1 for own in segments for place in range(len(own.tokens))]
        return torch.tensor(rows), torch.tensor(counts)

    def _masks(
        self, low: int, high: int, keys: int, scheme: PositionScheme
    ) -> list[Float[Tensor, "queries #key_value_heads #groups keys"]]:
        """Give what is added to the scores of tokens from `low` to `high`, which lie in the last block of the keys.

        One for each of `windows`.
        """
        size = self.pool.size
        places = torch.arange(keys, device=self.store.device)
        bias = scheme.bias(places[low:high], places)
        if bias is None:
            mask = self._own_block.new_zeros(high - low, 1, 1, keys)
        else:
            mask = bias.transpose(0, 1).unflatten(1, (self.key_value_heads, -1)).to(self.store.dtype).contiguous()
        mask[..., keys - size :] += self._own_block[low - keys + size : high - keys + size, None, None]
        return [
            mask
            if window is None or window >= high
            else mask.masked_fill(places[low:high, None, None, None] - places >= window, -torch.inf)
            for window in self.windows
        ]


class _PagedLayer(AttendingCache):
    """One layer's keys and values.

    Args:
        number: of the layer.
        cache: knows the step.
        window: which of the cache's windows the layer has.
    """

    def __init__(self, number: int, cache: PagedCache, window: int):
        super().__init__()
        self._number = number
        self._window = window
        self._cache = cache

    def attend(
        self,
        query: Float[Tensor, "batch heads queries head_width"],
        keys: Float[Tensor, "batch key_value_heads queries head_width"],
        values: Float[Tensor, "batch key_value_heads queries head_width"],
    ) -> Float[Tensor, "batch heads queries head_width"]:
        """Write the keys and values of the step, and let each token read those of its sequence up to itself."""
        plan, store = self._cache.plan, self._cache.store[self._number]
        assert plan is not None
        count = len(plan.slots)
        store[0].index_copy_(1, plan.slots, keys[0, :, :count])
        store[1].index_copy_(1, plan.slots, values[0, :, :count])
        fetched = [self._cache.blocks[self._number].index_select(2, index).flatten(2, 3) for index in plan.gathers]
        # Tokens are a batch, and query heads that share keys are as many queries, so that nothing is repeated.
        queries = query[0].transpose(0, 1).unflatten(1, (self._cache.key_value_heads, -1))
        mixed = []
        for own, reading in zip(queries[:count].split(plan.rows), plan.readings, strict=True):
            mask = reading.masks[self._window]
            if reading.views:
                looked_at = reading.views[self._number]
            else:
                (looked_at,) = _views(fetched[reading.gather][None], 0, mask.shape[-1], len(own))
            # What `fused_attention` sees to besides, gradients and autocast, is not here, and there are many calls.
            mixed.append(F.scaled_dot_product_attention(own, *looked_at, attn_mask=mask))
        # A row that is there for company reads nothing.
        return torch.cat([*mixed, queries[count:]]).flatten(1, 2).transpose(0, 1)[None]


def _views(
    stored: Float[Tensor, "layers 2 key_value_heads slots head_width"], first: int, keys: int, queries: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Show each layer's keys and values in some slots, as often as there are queries; nothing is copied."""
    shown = stored.narrow(3, first, keys).unsqueeze(2).expand(-1, -1, queries, -1, -1, -1)
    return zip(*(part.unbind() for part in shown.unbind(1)), strict=True)


def _is_compiled(model: Decoder, cache: PagedCache) -> bool:
    """Tell whether compiled code computes the layers: it knows no bias between positions."""
    if model.compiled is None or not model.compiled.takes_paged(cache.store):
        return False
    place = torch.zeros(1, dtype=torch.int64, device=cache.store.device)
    return model.positions.bias(place, place) is None


@torch.inference_mode()
def paged_logits(model: Decoder, cache: PagedCache, segments: Sequence[Segment]) -> list[Float[Tensor, "_ vocabulary"]]:
    """Compute segments of many sequences in one forward pass, and give each one's wanted logits.

    Keys and values are written into the cache; counting them as written is for the caller, who may take some back.

    Args:
        model: in evaluation mode.
        cache: of the model.
        segments: at least one, of different sequences.

    Raises:
        ValueError: no segments, or one without tokens.
    """
    if not segments or any(len(segment.tokens) == 0 for segment in segments):
        raise ValueError(f"a step needs tokens: got segments of {[len(segment.tokens) for segment in segments]}")
    device = cache.store.device
    tokens = [token for segment in segments for token in segment.tokens]
    places = [segment.table.length + place for segment in segments for place in range(len(segment.tokens))]
    wanted, row = [], 0
    for segment in segments:
        row += len(segment.tokens)
        wanted += range(row - segment.wanted, row)
    compiled = _is_compiled(model, cache)
    # Never a single row where torch multiplies: see above. What is given for the second is thrown away.
    twice = 1 + (len(tokens) == 1 and not compiled)
    fed, positions = (torch.tensor(row * twice, device=device)[None] for row in (tokens, places))
    rotation = model.positions.rotation(positions)
    hidden = model.positions.embed(model.embedding(fed) * model.embedding_scale, positions)
    if compiled:
        hidden = model.compiled.paged(hidden[0], rotation, cache.store, *cache.tables(segments), cache.pool.size)[None]
    else:
        cache.begin(segments, model.positions)
        pattern = AttentionPattern(rotation=rotation)
        for block, layer in zip(model.blocks, cache.layers, strict=True):
            hidden = block(hidden, pattern, cache=layer)
    if not wanted:
        return [hidden.new_empty(0, 1) for _ in segments]
    last = model.norm(hidden[0, wanted * (1 + (len(wanted) == 1))])
    # A quantised head computes only so many tokens alike.
    most = model.head.many - 1 if compiled and isinstance(model.head, (Int4Linear, Int8Linear)) else len(last)
    logits = torch.cat([model.logits(some) for some in last.split(most)])
    return list(logits[: len(wanted)].split([segment.wanted for segment in segments]))
