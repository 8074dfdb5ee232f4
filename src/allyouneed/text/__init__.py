"""Text in and out of language models: tokenizers, packing, sampling, generation, beam search."""

from .beam import Hypothesis, Translator, beam_search, length_penalty
from .chat import ChatModel, LocalChat
from .chat_template import ChatTemplate, Message
from .generation import LanguageModel, continuations, generate
from .packing import pack
from .published import PublishedTokenizer, load_tokenizer
from .sampling import Sampling, probabilities, sample
from .streaming import TextStream, generate_text
from .tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "ChatModel",
    "ChatTemplate",
    "Hypothesis",
    "LanguageModel",
    "LocalChat",
    "Message",
    "PublishedTokenizer",
    "Sampling",
    "TextStream",
    "Tokenizer",
    "Translator",
    "beam_search",
    "continuations",
    "generate",
    "generate_text",
    "length_penalty",
    "load_tokenizer",
    "pack",
    "probabilities",
    "sample",
]
