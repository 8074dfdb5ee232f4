"""FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness (Dao et al. 2022)."""

from .accesses import SlowMemory, standard_attention, standard_attention_backward
from .flash_attention import Tile, TiledAttention, butterfly, flash_attention

__all__ = [
    "SlowMemory",
    "Tile",
    "TiledAttention",
    "butterfly",
    "flash_attention",
    "standard_attention",
    "standard_attention_backward",
]
