"""RWKV: Reinventing RNNs for the Transformer Era (Peng et al. 2023)."""

from .initialise import initialise
from .mixing import ChannelMixing, TimeMixing
from .rwkv import SIZES, Rwkv, RwkvConfig
from .state import LayerState, RwkvState
from .wkv import WkvState, wkv_chunked, wkv_parallel, wkv_recurrent

__all__ = [
    "SIZES",
    "ChannelMixing",
    "LayerState",
    "Rwkv",
    "RwkvConfig",
    "RwkvState",
    "TimeMixing",
    "WkvState",
    "initialise",
    "wkv_chunked",
    "wkv_parallel",
    "wkv_recurrent",
]
