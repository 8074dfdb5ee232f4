"""LLaMA: Open and Efficient Foundation Language Models (Touvron et al. 2023), and its relatives."""

from .llama import SIZES, Llama, LlamaConfig, llama_attention, llama_block, swiglu_hidden
from .relatives import Mistral, MistralConfig, Qwen2, Qwen3, QwenConfig

__all__ = [
    "SIZES",
    "Llama",
    "LlamaConfig",
    "Mistral",
    "MistralConfig",
    "Qwen2",
    "Qwen3",
    "QwenConfig",
    "llama_attention",
    "llama_block",
    "swiglu_hidden",
]
