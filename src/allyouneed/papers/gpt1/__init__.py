"""Improving Language Understanding by Generative Pre-Training: GPT (Radford et al. 2018)."""

from .byte_pairs import EndOfWordBPE
from .fine_tuning import (
    AUXILIARY_WEIGHT,
    Chooser,
    Classifier,
    FineTuned,
    fine_tuning_loss,
    transfer,
    with_new_tokens,
)
from .gpt1 import GPT1, GPT1Config, initialise
from .inputs import (
    PADDING,
    Examples,
    Special,
    assemble,
    classification,
    entailment,
    multiple_choice,
    similarity,
)
from .recurrent import RecurrentLanguageModel

__all__ = [
    "AUXILIARY_WEIGHT",
    "GPT1",
    "PADDING",
    "Chooser",
    "Classifier",
    "EndOfWordBPE",
    "Examples",
    "FineTuned",
    "GPT1Config",
    "RecurrentLanguageModel",
    "Special",
    "assemble",
    "classification",
    "entailment",
    "fine_tuning_loss",
    "initialise",
    "multiple_choice",
    "similarity",
    "transfer",
    "with_new_tokens",
]
