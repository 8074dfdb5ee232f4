"""Text in and out of language models: tokenizers, packing, sampling, generation."""

from .generation import LanguageModel, generate
from .packing import pack
from .sampling import Sampling, probabilities, sample
from .tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "LanguageModel",
    "Sampling",
    "Tokenizer",
    "generate",
    "pack",
    "probabilities",
    "sample",
]
