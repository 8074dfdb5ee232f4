"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin et al. 2018)."""

from .bert import Bert, BertConfig
from .heads import (
    MaskedLanguageModel,
    NextSentence,
    PreTraining,
    SentenceClassifier,
    SpanFinder,
    TokenClassifier,
    best_spans,
)
from .pooling import Dense, Normalize, Pooling
from .pretraining import (
    IGNORED,
    Masked,
    Masking,
    Pairs,
    left_to_right_loss,
    mask_tokens,
    masked_loss,
    pretraining_loss,
    words_of,
)
from .sentences import Rows, SentenceEmbedder, join
from .wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

__all__ = [
    "IGNORED",
    "SPECIAL_TOKENS",
    "Bert",
    "BertConfig",
    "Dense",
    "Masked",
    "MaskedLanguageModel",
    "Masking",
    "NextSentence",
    "Normalize",
    "Pairs",
    "Pooling",
    "PreTraining",
    "Rows",
    "SentenceClassifier",
    "SentenceEmbedder",
    "SpanFinder",
    "TokenClassifier",
    "WordPieceTokenizer",
    "best_spans",
    "join",
    "left_to_right_loss",
    "mask_tokens",
    "masked_loss",
    "pretraining_loss",
    "words_of",
]
