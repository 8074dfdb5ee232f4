"""The parts that models are composed of. Imports torch, and nothing of ours.

Shapes are types, written with these axis names throughout the project:

| axis | what |
|---|---|
| `batch` | independent sequences |
| `length` | tokens of a sequence |
| `queries`, `keys` | tokens that look, tokens that are looked at |
| `heads`, `key_value_heads` | attention heads, and the fewer heads that keys and values may have |
| `width` | a token's vector in the residual stream |
| `head_width` | a token's vector inside one head |
| `hidden` | the inner vector of a feed-forward layer |
| `vocabulary` | the tokens that there are |
| `tokens` | vectors of all sequences in one row, where their order does not matter |
| `experts` | the layers that a mixture chooses from |
| `choices` | experts that a token is sent to |
| `routes` | pairs of a token and an expert that it is sent to |
"""

from .activations import ACTIVATIONS
from .attending import AttendingCache
from .attention import Attention, AttentionPattern, attention_pattern, fused_attention
from .blocks import Block, PostNorm, PreNorm
from .cache import KeyValueCache
from .compiled import Compilation, compile_decoder
from .decoder import Decoder
from .encoder import Encoder
from .encoder_decoder import CrossBlock, CrossCache, EncoderDecoder
from .feed_forward import FeedForward, GatedFeedForward
from .inference import arrange_for_inference
from .initialise import initialise_xavier
from .layer_cache import LayerCache, WindowCache
from .losses import linear_cross_entropy
from .mixture import Experts, GatedExperts, Mixture, Routes, mix, segment_linear, sort_routes
from .normalisation import RMSNorm
from .positions import LearnedPositions, PositionScheme, RotaryPositions, Rotation, SinusoidalPositions
from .quantized import Int4Linear, Int8Linear
from .quantizing import QuantizedEmbedding, join_projections, quantize_int8, tie_quantized
from .recurrent import AdditiveAttention, RecurrentEncoderDecoder
from .rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    YarnScaling,
)
from .stepping import SteppingBlock, step_quickly

__all__ = [
    "ACTIVATIONS",
    "AdditiveAttention",
    "AttendingCache",
    "Attention",
    "AttentionPattern",
    "Block",
    "Compilation",
    "CrossBlock",
    "CrossCache",
    "Decoder",
    "DynamicScaling",
    "Encoder",
    "EncoderDecoder",
    "Experts",
    "FeedForward",
    "GatedExperts",
    "GatedFeedForward",
    "Int4Linear",
    "Int8Linear",
    "KeyValueCache",
    "LayerCache",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "Mixture",
    "PositionScheme",
    "PostNorm",
    "PreNorm",
    "QuantizedEmbedding",
    "RMSNorm",
    "RecurrentEncoderDecoder",
    "RotaryPositions",
    "RotaryScaling",
    "Rotation",
    "Routes",
    "SinusoidalPositions",
    "SteppingBlock",
    "WindowCache",
    "YarnScaling",
    "arrange_for_inference",
    "attention_pattern",
    "compile_decoder",
    "fused_attention",
    "initialise_xavier",
    "join_projections",
    "linear_cross_entropy",
    "mix",
    "quantize_int8",
    "segment_linear",
    "sort_routes",
    "step_quickly",
    "tie_quantized",
]
