"""Language Models are Unsupervised Multitask Learners: GPT-2 (Radford et al. 2019)."""

from .byte_pairs import ByteLevelBPE
from .gpt2 import GPT2, SIZES, GPT2Config, initialise
from .merges import PATTERN, byte_characters, learn_merges, words
from .prompts import first_sentences, question_prompt, summary_prompt, translation_prompt

__all__ = [
    "GPT2",
    "PATTERN",
    "SIZES",
    "ByteLevelBPE",
    "GPT2Config",
    "byte_characters",
    "first_sentences",
    "initialise",
    "learn_merges",
    "question_prompt",
    "summary_prompt",
    "translation_prompt",
    "words",
]
