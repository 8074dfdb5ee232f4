"""The key-value cache: what attention computed for earlier tokens, kept for later ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
        total = self.length + keys.shape[2]
        if self.limit is not None and total > self.limit:
            raise ValueError(f"the cache is limited to {self.limit} tokens and would hold {total}")
        if self._keys is None or self._values is None:
            self._capacity = max(self._capacity, total)
            self._keys, self._values = self._room(keys), self._room(values)
        elif keys.shape[0] != self._keys.shape[0]:
            raise ValueError(f"the cache holds a batch of {self._keys.shape[0]}, not of {keys.shape[0]}")
        elif total > self._capacity:
            self._capacity = max(2 * self._capacity, total)
            held_keys, held_values = self._keys[:, :, : self.length], self._values[:, :, : self.length]
            self._keys, self._values = self._room(keys), self._room(values)
            self._keys[:, :, : self.length] = held_keys
            self._values[:, :, : self.length] = held_values
        new = keys.shape[2]
        self._keys.narrow(2, self.length, new).copy_(keys)
        self._values.narrow(2, self.length, new).copy_(values)
        self.length = total
        return self._keys.narrow(2, 0, total), self._values.narrow(2, 0, total)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; their room is kept.

        Raises:
            ValueError: fewer tokens are held, or a negative length.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be cut to {length}: it must be from 0 to that")
        self.length = length

    def _room(self, like: Tensor) -> Tensor:
        batch, heads, _, width = like.shape
        return like.new_empty(batch, heads, self._capacity, width)


class KeyValueCache:
    """The caches of all layers of a model, and which of the tokens in them are padding.

    For inference: what is appended is written into buffers, so no gradient flows through a cache.

    Args:
        layers: number of attention layers.
        limit: the most tokens that may be held; no limit where None.
        capacity: tokens to make room for at the start; buffers double when they are full.
    """

    def __init__(self, layers: int, limit: int | None = None, capacity: int = 64):
        self.layers = [LayerCache(limit, capacity) for _ in range(layers)]
        self.present: Bool[Tensor, "batch keys"] | None = None

    def __len__(self) -> int:
        """Count the tokens held for each sequence, padding included."""
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length` of each sequence, padding counted.

        Raises:
            ValueError: fewer tokens are held, or a negative length.
        """
        for layer in self.layers:
            layer.truncate(length)
        if self.present is not None:
            self.present = self.present[:, :length]

    def joined(
        self, present: Bool[Tensor, "batch new"] | None, batch: int, new: int, device: torch.device
    ) -> Bool[Tensor, "batch keys"] | None:
        """Say which tokens are present, those held and the new ones after them; None where none is padding.

        Nothing is noted yet: `present` is set to it when the layers have taken the new tokens in.

        Raises:
            ValueError: another batch than before.
        """
        if present is None and self.present is None:
            return None
        earlier = self.present
        if earlier is not None and earlier.shape[0] != batch:
            raise ValueError(f"the cache holds a batch of {earlier.shape[0]}, not of {batch}")
        if earlier is None:
            earlier = torch.ones(batch, len(self), dtype=torch.bool, device=device)
        if present is None:
            present = torch.ones(batch, new, dtype=torch.bool, device=device)
        return torch.cat((earlier, present), dim=1)
