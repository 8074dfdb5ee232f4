"""Text in and out of language models: tokenizers, packing, sampling, generation, beam search."""

from .beam import Hypothesis, Translator, beam_search, length_penalty
from .byte_pairs import BytePairTokenizer
from .chat import ChatModel, LocalChat
from .chat_template import ChatTemplate, Message
from .constraints import Constraint, ConstraintError, Grammar
from .generation import LanguageModel, continuations, generate
from .generation_config import GenerationConfig, end_tokens
from .packing import pack
from .pairs import encode_pairs
from .published import PublishedTokenizer, load_tokenizer
from .sampling import Sampling, mask_undecodable, probabilities, sample
from .scoring import score_tokens
from .special_tokens import SpecialTokensMixin
from .streaming import TextStream, generate_text
from .token_bytes import token_bytes
from .tokenizers import ByteTokenizer, Tokenizer

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "ChatModel",
    "ChatTemplate",
    "Constraint",
    "ConstraintError",
    "GenerationConfig",
    "Grammar",
    "Hypothesis",
    "LanguageModel",
    "LocalChat",
    "Message",
    "PublishedTokenizer",
    "Sampling",
    "SpecialTokensMixin",
    "TextStream",
    "Tokenizer",
    "Translator",
    "beam_search",
    "continuations",
    "encode_pairs",
    "end_tokens",
    "generate",
    "generate_text",
    "length_penalty",
    "load_tokenizer",
    "mask_undecodable",
    "pack",
    "probabilities",
    "sample",
    "score_tokens",
    "token_bytes",
]
