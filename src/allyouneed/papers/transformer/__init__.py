"""Attention Is All You Need: translation by attention alone (Vaswani et al. 2017)."""

from .transformer import (
    MultiHeadAttention,
    cross_attention_weights,
    label_smoothed_cross_entropy,
    peak_learning_rate,
    scaled_dot_product_attention,
    transformer,
)
from .translation import SPECIAL_TOKENS, encoded_pairs, shared_tokenizer, translate, translation_loss

__all__ = [
    "SPECIAL_TOKENS",
    "MultiHeadAttention",
    "cross_attention_weights",
    "encoded_pairs",
    "label_smoothed_cross_entropy",
    "peak_learning_rate",
    "scaled_dot_product_attention",
    "shared_tokenizer",
    "transformer",
    "translate",
    "translation_loss",
]
