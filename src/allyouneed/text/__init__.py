"""Text in and out of language models: tokenizers, packing, sampling, generation, beam search."""

from .beam import Hypothesis, Translator, beam_search, length_penalty
from .generation import LanguageModel, generate
from .packing import pack
from .sampling import Sampling, probabilities, sample
from .tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "Hypothesis",
    "LanguageModel",
    "Sampling",
    "Tokenizer",
    "Translator",
    "beam_search",
    "generate",
    "length_penalty",
    "pack",
    "probabilities",
    "sample",
]
