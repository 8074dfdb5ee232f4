"""The key-value cache of one layer: whole, of a window of the last tokens, or of rows that begin alike."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# A layer with a window holds at least so many tokens more than will be seen. Drafting and chats take back no more as
# a rule.
_TAKEN_BACK = 64


class LayerCache:
    """Keys and values of one layer, in buffers that grow by doubling.

    Args:
        limit: the most tokens that may be held; no limit where None.
        capacity: tokens to make room for at the start.
    """

    def __init__(self, limit: int | None = None, capacity: int = 64):
        self.limit = limit
        self.length = 0
        self._capacity = capacity
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(
        self,
        keys: Float[Tensor, "batch key_value_heads new head_width"],
        values: Float[Tensor, "batch key_value_heads new head_width"],
    ) -> tuple[
        Float[Tensor, "batch key_value_heads keys head_width"], Float[Tensor, "batch key_value_heads keys head_width"]
    ]:
        """Add the keys and values of new tokens; return those of all tokens so far (views, not copies).

        Raises:
            ValueError: more tokens than the limit, or another batch than before.
        """
        new = keys.shape[2]
        all_keys, all_values = self.extend(keys)
        total = self.length
        all_keys.narrow(2, total - new, new).copy_(keys)
        all_values.narrow(2, total - new, new).copy_(values)
        return all_keys.narrow(2, 0, total), all_values.narrow(2, 0, total)

    def extend(
        self, like: Float[Tensor, "batch key_value_heads new head_width"]
    ) -> tuple[
        Float[Tensor, "batch key_value_heads room head_width"], Float[Tensor, "batch key_value_heads room head_width"]
    ]:
        """Make place for the keys and values of new tokens, and count these as held; the caller writes them.

        Args:
            like: of their shape and type.

        Returns:
            The buffers of keys and of values, with room for more; the new tokens' place is the last before `length`.

        Raises:
            ValueError: more tokens than the limit, or another batch than before.
        """
        total = self._total_with(like.shape[2])
        if self._keys is None or self._values is None:
            self._capacity = max(self._capacity, total)
            self._keys, self._values = self._room(like), self._room(like)
        elif like.shape[0] != self._keys.shape[0]:
            raise ValueError(f"the cache holds a batch of {self._keys.shape[0]}, not of {like.shape[0]}")
        elif total > self._capacity:
            self._capacity = max(2 * self._capacity, total)
            held_keys, held_values = self._keys[:, :, : self.length], self._values[:, :, : self.length]
            self._keys, self._values = self._room(like), self._room(like)
            self._keys[:, :, : self.length] = held_keys
            self._values[:, :, : self.length] = held_values
        self.length = total
        return self._keys, self._values

    @property
    def room(self) -> int:
        """How many tokens the buffers hold, or will hold at first."""
        return self._capacity

    @property
    def shortest(self) -> int:
        """The fewest tokens that `truncate` can leave."""
        return 0

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; their room is kept.

        Raises:
            ValueError: fewer tokens are held, or a negative length.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be cut to {length}: it must be from 0 to that")
        self.length = length

    def branch(self, rows: Sequence[int]) -> "LayerCache":
        """Make a cache whose rows go on from rows of this one; as `KeyValueCache.branch`."""
        if self._keys is None or self._values is None:
            return LayerCache(self.limit)
        _check_rows(rows, len(self._keys))
        if len(self._keys) > 1:
            return self._copied(rows)
        keys, values = self._keys.narrow(2, 0, self.length), self._values.narrow(2, 0, self.length)
        return _Branches(keys, values, LayerCache(), len(rows), self.limit)

    def _copied(self, rows: Sequence[int]) -> "LayerCache":
        copied = LayerCache(self.limit)
        if self._keys is not None and self._values is not None and self.length:
            index = torch.tensor(rows, device=self._keys.device)
            copied.append(self._keys[:, :, : self.length][index], self._values[:, :, : self.length][index])
        return copied

    def _total_with(self, new: int) -> int:
        total = self.length + new
        if self.limit is not None and total > self.limit:
            raise ValueError(f"the cache is limited to {self.limit} tokens and would hold {total}")
        return total

    def _room(self, like: Tensor) -> Tensor:
        batch, heads, _, width = like.shape
        return like.new_empty(batch, heads, self._capacity, width)


class WindowCache(LayerCache):
    """Keys and values of a layer whose tokens see a window of the last ones: those that none will see are forgotten.

    `length` counts all tokens that were appended. Some more are held than will be seen, so that the last few tokens can
    be taken back by `truncate`, and so that most calls move nothing.

    Args:
        window: how many tokens one sees, itself counted.
        limit: the most tokens that may be appended; no limit where None.
        capacity: tokens to make room for at the start.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, window: int, limit: int | None = None, capacity: int = 64):
        super().__init__(limit)
        if window < 1:
            raise ValueError(f"window {window} is out of range: it must be at least 1, since a token sees itself")
        self.window = window
        self._most = 2 * (window + _TAKEN_BACK)
        self._last = LayerCache(capacity=min(capacity, self._most))

    def append(
        self,
        keys: Float[Tensor, "batch key_value_heads new head_width"],
        values: Float[Tensor, "batch key_value_heads new head_width"],
    ) -> tuple[
        Float[Tensor, "batch key_value_heads keys head_width"], Float[Tensor, "batch key_value_heads keys head_width"]
    ]:
        """Add the keys and values of new tokens; return those of all tokens that one of the new ones sees.

        Raises:
            ValueError: more tokens than the limit, or another batch than before.
        """
        new = keys.shape[2]
        total = self._total_with(new)
        held = self._last.append(keys, values)
        seen = min(held[0].shape[2], self.window - 1 + new)
        if self._last.length > self._most:
            kept = self.window - 1 + _TAKEN_BACK
            self._last = LayerCache(capacity=self._most)
            self._last.append(held[0][:, :, -kept:], held[1][:, :, -kept:])
        self.length = total
        return held[0][:, :, -seen:], held[1][:, :, -seen:]

    @property
    def shortest(self) -> int:
        """The fewest tokens that `truncate` can leave: those that come next must find all that they see."""
        forgotten = self.length - self._last.length
        return forgotten + self.window - 1 if forgotten else 0

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`.

        Raises:
            ValueError: fewer tokens were appended, or what the next token would see has been forgotten.
        """
        if not self.shortest <= length <= self.length:
            raise ValueError(
                f"a cache of {self.length} tokens with a window of {self.window} cannot be cut to {length}: it must be "
                f"from {self.shortest} to {self.length}, since earlier ones have been forgotten"
            )
        self._last.truncate(self._last.length - (self.length - length))
        self.length = length

    def branch(self, rows: Sequence[int]) -> LayerCache:
        """Make a cache whose rows go on from rows of this one, with copies of what is held."""
        if self._last._keys is not None:
            _check_rows(rows, len(self._last._keys))
        branched = WindowCache(self.window, self.limit)
        branched._last = self._last._copied(rows)
        branched.length = self.length
        return branched


class _Branches(LayerCache):
    """Rows that have their first tokens in common, held once, and go on from them each for itself.

    Args:
        keys: of the common tokens.
        values: of the same.
        tails: what the rows have after them.
        rows: how many there are.
        limit: the most tokens that a row may have, those in common counted.
    """

    def __init__(
        self,
        keys: Float[Tensor, "1 key_value_heads keys head_width"],
        values: Float[Tensor, "1 key_value_heads keys head_width"],
        tails: LayerCache,
        rows: int,
        limit: int | None,
    ):
        super().__init__(limit)
        self._common = keys, values
        self._tails = tails
        self._rows = rows
        self.length = keys.shape[2] + tails.length

    def append(
        self,
        keys: Float[Tensor, "batch key_value_heads new head_width"],
        values: Float[Tensor, "batch key_value_heads new head_width"],
    ) -> tuple[
        Float[Tensor, "batch key_value_heads keys head_width"], Float[Tensor, "batch key_value_heads keys head_width"]
    ]:
        """Add the keys and values of new tokens; return those of all tokens so far, joined anew at each call.

        Raises:
            ValueError: more tokens than the limit, or another batch than there are rows.
        """
        if keys.shape[0] != self._rows:
            raise ValueError(f"the cache holds a batch of {self._rows}, not of {keys.shape[0]}")
        self.length = self._total_with(keys.shape[2])
        own = self._tails.append(keys, values)
        joined = [
            torch.cat((common.expand(self._rows, -1, -1, -1), tail), dim=2)
            for common, tail in zip(self._common, own, strict=True)
        ]
        return joined[0], joined[1]

    @property
    def shortest(self) -> int:
        """The fewest tokens that `truncate` can leave: those in common."""
        return self._common[0].shape[2]

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; those in common stay.

        Raises:
            ValueError: fewer tokens are held, or fewer are to be kept than the rows have in common.
        """
        common = self.shortest
        if not common <= length <= self.length:
            raise ValueError(
                f"branches of {self.length} tokens, {common} of them in common, cannot be cut to {length}: it must be "
                f"from {common} to {self.length}"
            )
        self._tails.truncate(length - common)
        self.length = length

    def branch(self, rows: Sequence[int]) -> LayerCache:
        """Make a cache whose rows go on from rows of this one, with the same tokens in common."""
        _check_rows(rows, self._rows)
        return _Branches(*self._common, self._tails._copied(rows), len(rows), self.limit)


def _check_rows(rows: Sequence[int], held: int) -> None:
    outside = next((row for row in rows if not 0 <= row < held), None)
    if outside is not None:
        raise ValueError(f"row {outside} is not in the cache: it holds rows 0 to {held - 1}")
