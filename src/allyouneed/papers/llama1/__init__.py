"""LLaMA: Open and Efficient Foundation Language Models (Touvron et al. 2023)."""

from .llama import SIZES, Llama, LlamaConfig, llama_block, swiglu_hidden

__all__ = ["SIZES", "Llama", "LlamaConfig", "llama_block", "swiglu_hidden"]
