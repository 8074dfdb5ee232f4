"""Language Models are Few-Shot Learners: GPT-3 (Brown et al. 2020)."""

from .answers import exact_match, f1, plain, write_answers
from .contamination import Filter, dirty, gram_length
from .gpt3 import GPT3, SIZES, GPT3Config
from .prompts import Layout, Prompt, assemble, draw, longest
from .scoring import NORMALISATIONS, Normalisation, OptionScores, accuracy, score_options, score_tokens
from .sparse import BandedAttention, banded_mask

__all__ = [
    "GPT3",
    "NORMALISATIONS",
    "SIZES",
    "BandedAttention",
    "Filter",
    "GPT3Config",
    "Layout",
    "Normalisation",
    "OptionScores",
    "Prompt",
    "accuracy",
    "assemble",
    "banded_mask",
    "dirty",
    "draw",
    "exact_match",
    "f1",
    "gram_length",
    "longest",
    "plain",
    "score_options",
    "score_tokens",
    "write_answers",
]
