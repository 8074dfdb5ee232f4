"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (Raffel et al. 2019)."""

from .config import SIZES, T5Config
from .mixing import Draw, Mixture, mixing_rates, one_of
from .objectives import (
    Objective,
    Pair,
    bert_style,
    deshuffle,
    drop_tokens,
    finished,
    iid_noise,
    mass_style,
    replace_spans,
    restore_spans,
    span_noise,
)
from .packing import Packed, pack_pairs, packed_hidden, packed_loss, unpack_pairs
from .positions import RelativePositions, relative_buckets
from .schedule import ConstantThenInverseSquareRoot
from .sentencepieces import SentencePieceTokenizer
from .structures import STRUCTURES, LanguageModel, training_flops
from .t5 import T5, initialise, unscaled_attention
from .tasks import as_pairs, as_text, check_labels, exact_match, number_as_text, text_as_number, write_answers

__all__ = [
    "SIZES",
    "STRUCTURES",
    "T5",
    "ConstantThenInverseSquareRoot",
    "Draw",
    "LanguageModel",
    "Mixture",
    "Objective",
    "Packed",
    "Pair",
    "RelativePositions",
    "SentencePieceTokenizer",
    "T5Config",
    "as_pairs",
    "as_text",
    "bert_style",
    "check_labels",
    "deshuffle",
    "drop_tokens",
    "exact_match",
    "finished",
    "iid_noise",
    "initialise",
    "mass_style",
    "mixing_rates",
    "number_as_text",
    "one_of",
    "pack_pairs",
    "packed_hidden",
    "packed_loss",
    "relative_buckets",
    "replace_spans",
    "restore_spans",
    "span_noise",
    "text_as_number",
    "training_flops",
    "unpack_pairs",
    "unscaled_attention",
    "write_answers",
]
