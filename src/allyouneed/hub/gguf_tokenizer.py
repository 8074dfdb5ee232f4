"""The tokenizer that a GGUF file's metadata describes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from allyouneed.text import BytePairTokenizer, PublishedTokenizer

from .errors import CheckpointFormatError, UnsupportedError

# What contractions, words, punctuation and white space are, in the patterns of GPT-4 and what came after it; they
# differ in how many digits stand together.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _pattern(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PATTERN % digits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# The metadata gives no pattern, only the name of one: how text is split before bytes are paired.
_SPLITS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _pattern("{1,3}"),
    "qwen2": lambda: _pattern(""),
}

# Qwen's own tokenizer normalises text; the metadata does not say so.
_NORMALIZERS = {"qwen2": normalizers.NFC}

# How the metadata calls the roles of special tokens; the misspelling is the format's.
_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}

# Of `tokenizer.ggml.token_type`, as ggml numbers them; the others are ordinary.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


def tokenizer_from(metadata: Mapping[str, Any], source: str) -> BytePairTokenizer | PublishedTokenizer:
    """Make the tokenizer that the metadata of a GGUF file describes: byte-level pairs, or SentencePiece's.

    Args:
        metadata: of the file.
        source: the file, for messages.

    Raises:
        CheckpointFormatError: the metadata has no tokenizer, or one that contradicts itself.
        UnsupportedError: another kind of tokenizer, or another way of splitting text.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind is None:
        raise CheckpointFormatError(f"{source} has no tokenizer: tokenizer.ggml.model is missing")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"{source} has a tokenizer of the kind {kind!r}; of those in GGUF files, 'gpt2' and 'llama' are read"
        )
    if kind == "gpt2" and (not isinstance(split, str) or split not in _SPLITS):
        raise UnsupportedError(
            f"{source} splits text in the way called {split!r}; these are known: {', '.join(_SPLITS)}"
        )
    try:
        tokenizer = (
            BytePairTokenizer(_byte_pairs(metadata, str(split)))
            if kind == "gpt2"
            else PublishedTokenizer(_sentence_pieces(metadata))
        )
        tokenizer.special_tokens_map = _roles(metadata, tokenizer)
        return tokenizer
    except (CheckpointFormatError, ValueError) as error:
        raise CheckpointFormatError(f"{source} does not describe a sound tokenizer: {error}") from error


def _byte_pairs(metadata: Mapping[str, Any], split: str) -> tokenizers.Tokenizer:
    """Make a byte-level tokenizer of pairs that are listed (GPT-2's kind)."""
    vocabulary, kinds = _vocabulary(metadata)
    pairs = []
    for merge in _strings(metadata, "merges"):
        first, _, second = merge.partition(" ")
        if not {first, second, first + second} <= vocabulary.keys():
            raise CheckpointFormatError(f"the merge {merge!r} joins or makes tokens that there are not")
        pairs.append((first, second))
    # As llama.cpp has it: a word that is a token as it stands is not paired.
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split == "llama-bpe"))
    if split in _NORMALIZERS:
        tokenizer.normalizer = _NORMALIZERS[split]()
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    return _completed(tokenizer, metadata, vocabulary, kinds, begins=split == "llama-bpe")


def _sentence_pieces(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Make a tokenizer of SentencePiece's kind of byte pairs, whose pieces have scores, and bytes for what they lack.

    SentencePiece joins the two neighbours whose joined piece has the highest score. So every way of splitting a piece
    in two is a merge, in the order of the pieces' scores.
    """
    vocabulary, kinds = _vocabulary(metadata)
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(vocabulary):
        raise CheckpointFormatError(f"tokenizer.ggml.scores must be {len(vocabulary)} numbers, one for each token")
    names = list(vocabulary)
    joined = {names[place]: float(scores[place]) for place in np.flatnonzero(kinds == _NORMAL).tolist()}
    merges = sorted(
        (
            (score, cut, len(piece) - cut, piece)
            for piece, score in joined.items()
            for cut in range(1, len(piece))
            if piece[:cut] in joined and piece[cut:] in joined
        ),
        reverse=True,
    )
    pairs = [(piece[:cut], piece[cut:]) for _, cut, _, piece in merges]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    bytes_there = {f"<0x{byte:02X}>" for byte in range(256)} <= vocabulary.keys()
    model = models.BPE(
        vocab=vocabulary,
        merges=pairs,
        fuse_unk=True,
        byte_fallback=bytes_there,
        unk_token=names[unknown] if type(unknown) is int and unknown < len(names) else None,
    )
    tokenizer = tokenizers.Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    # A space comes before the first word even where there is one already, as in SentencePiece and llama.cpp.
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return _completed(tokenizer, metadata, vocabulary, kinds, begins=True)


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[dict[str, int], np.ndarray]:
    """Read the tokens, by name, and what kind each is of."""
    tokens = _strings(metadata, "tokens")
    kinds = metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise CheckpointFormatError(f"tokenizer.ggml.token_type must have {len(tokens)} numbers, one for each token")
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise CheckpointFormatError("tokenizer.ggml.tokens has a token twice")
    return vocabulary, kinds


def _completed(
    tokenizer: tokenizers.Tokenizer,
    metadata: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    kinds: np.ndarray,
    *,
    begins: bool,
) -> tokenizers.Tokenizer:
    """Add special tokens, and what is put around a text."""
    tokens = list(vocabulary)
    for place in np.flatnonzero(np.isin(kinds, (_UNKNOWN, _CONTROL, _USER_DEFINED))).tolist():
        special = kinds[place] != _USER_DEFINED
        tokenizer.add_tokens([AddedToken(tokens[place], special=special, normalized=False)])
    if (ends := _ends(metadata, tokens, begins)) is not None:
        tokenizer.post_processor = ends
    return tokenizer


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise CheckpointFormatError(f"tokenizer.ggml.{key} must be strings")
    return value


def _roles(metadata: Mapping[str, Any], tokenizer: BytePairTokenizer | PublishedTokenizer) -> dict[str, str]:
    """Name the special tokens that the metadata gives a role, which it does by number."""
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    stated = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in _ROLES.items()}
    return {role: names[token] for role, token in stated.items() if type(token) is int and token in names}


def _ends(metadata: Mapping[str, Any], tokens: list[str], begins: bool) -> processors.TemplateProcessing | None:
    """Put the tokens of beginning and end around a text where the metadata asks for them.

    Where it says nothing, kinds of tokenizers that `begins` names put a beginning before each text.
    """
    named: dict[str, str] = {}
    usual = begins and type(metadata.get("tokenizer.ggml.bos_token_id")) is int
    for end, absent in (("bos", usual), ("eos", False)):
        if metadata.get(f"tokenizer.ggml.add_{end}_token", absent) is True:
            token = metadata.get(f"tokenizer.ggml.{end}_token_id")
            if type(token) is not int or not 0 <= token < len(tokens):
                raise CheckpointFormatError(f"tokenizer.ggml.{end}_token_id is {token!r}, of {len(tokens)} tokens")
            named[end] = tokens[token]
    if not named:
        return None
    ids = {name: tokens.index(name) for name in named.values()}
    single = [named.get("bos"), "$A", named.get("eos")]
    return processors.TemplateProcessing(
        single=[piece for piece in single if piece is not None], special_tokens=list(ids.items())
    )
