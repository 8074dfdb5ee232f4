"""Layer Normalization (Ba, Kiros & Hinton 2016)."""

from .baselines import BatchNorm, RecurrentBatchNorm, weight_norm
from .layer_norm import LayerNorm, layer_norm
from .recurrent import GRU, LSTM, Bias, MakeNorm, StepNorm

__all__ = [
    "GRU",
    "LSTM",
    "BatchNorm",
    "Bias",
    "LayerNorm",
    "MakeNorm",
    "RecurrentBatchNorm",
    "StepNorm",
    "layer_norm",
    "weight_norm",
]
