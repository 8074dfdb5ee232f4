"""The key-value cache: what attention computed for earlier tokens, kept for later ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from .layer_cache import LayerCache, WindowCache


class KeyValueCache:
    """The caches of all layers of a model, and which of the tokens in them are padding.

    For inference: what is appended is written into buffers, so no gradient flows through a cache.

    Args:
        layers: number of attention layers.
        limit: the most tokens that may be held; no limit where None.
        capacity: tokens to make room for at the start; buffers double when they are full.
        windows: of each layer, how many tokens one sees, and so how many are held; all where None.

    Raises:
        ValueError: not as many windows as layers.
    """

    def __init__(
        self,
        layers: int,
        limit: int | None = None,
        capacity: int = 64,
        windows: Sequence[int | None] | None = None,
    ):
        windows = [None] * layers if windows is None else windows
        if len(windows) != layers:
            raise ValueError(f"{len(windows)} windows do not fit {layers} layers: there must be one for each")
        self.layers = [
            LayerCache(limit, capacity) if window is None else WindowCache(window, limit, capacity)
            for window in windows
        ]
        self.present: Bool[Tensor, "batch keys"] | None = None

    def __len__(self) -> int:
        """Count the tokens held for each sequence, padding included."""
        return self.layers[0].length

    @property
    def shortest(self) -> int:
        """The fewest tokens that `truncate` can leave: more than none where layers with windows have forgotten some."""
        return max((layer.shortest for layer in self.layers), default=0)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length` of each sequence, padding counted.

        Raises:
            ValueError: fewer tokens are held, a negative length, or one below `shortest`; nothing is forgotten then.
        """
        # Those that refuse first, so that none is cut where one cannot be.
        for layer in sorted(self.layers, key=lambda layer: layer.shortest, reverse=True):
            layer.truncate(length)
        if self.present is not None:
            self.present = self.present[:, :length]

    def branch(self, rows: Sequence[int]) -> "KeyValueCache":
        """Make a cache whose rows go on from rows of this one: what was computed for a prompt serves all that follow.

        The keys and values of a single row are not copied for its branches; those of several rows are, once. This cache
        stays as it is and may be branched again; it must not be cut shorter meanwhile.

        Args:
            rows: the row of this cache from which each row of the new one goes on; one may be there many times.

        Raises:
            ValueError: no rows, or a row that the cache does not have.
        """
        if len(rows) == 0:
            raise ValueError("a cache cannot be branched into no rows: name at least one")
        branched = KeyValueCache(0)
        branched.layers = [layer.branch(rows) for layer in self.layers]
        if self.present is not None:
            branched.present = self.present[torch.tensor(rows, device=self.present.device)]
        return branched

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
