"""The seam for caches that attend by themselves, such as one whose keys and values lie scattered in blocks."""

from jaxtyping import Float
from torch import Tensor

from .layer_cache import LayerCache


class AttendingCache(LayerCache):
    """A cache that lays out keys and values in a way of its own, and computes attention itself.

    `Attention` hands it query, key and value, already rotated by their positions, in place of calling `append` and its
    kernel. Who may be looked at is then for the cache to know, and the pattern's mask is not read.
    """

    def attend(
        self,
        query: Float[Tensor, "batch heads queries head_width"],
        keys: Float[Tensor, "batch key_value_heads queries head_width"],
        values: Float[Tensor, "batch key_value_heads queries head_width"],
    ) -> Float[Tensor, "batch heads queries head_width"]:
        """Take in the keys and values of new tokens, and give what each of these tokens reads.

        Raises:
            NotImplementedError: a subclass without its own.
        """
        raise NotImplementedError
