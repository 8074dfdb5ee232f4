"""The tokenizer that a GGUF file's metadata describes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from allyouneed.text import BytePairTokenizer

from .errors import CheckpointFormatError, UnsupportedError

# The metadata gives no pattern, only the name of one: how text is split before bytes are paired.
_SPLITS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}

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
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def tokenizer_from(metadata: Mapping[str, Any], source: str) -> BytePairTokenizer:
    """Make a byte-level byte-pair tokenizer from the metadata of a GGUF file.

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
    if kind != "gpt2":
        raise UnsupportedError(f"{source} has a tokenizer of the kind {kind!r}; of those in GGUF files, 'gpt2' is read")
    if split not in _SPLITS:
        raise UnsupportedError(
            f"{source} splits text in the way called {split!r}; these are known: {', '.join(_SPLITS)}"
        )
    try:
        tokenizer = _byte_pairs(metadata, _SPLITS[split]())
        tokenizer.special_tokens_map = _roles(metadata, tokenizer)
        return tokenizer
    except (CheckpointFormatError, ValueError) as error:
        raise CheckpointFormatError(f"{source} does not describe a sound tokenizer: {error}") from error


def _byte_pairs(metadata: Mapping[str, Any], split: pre_tokenizers.PreTokenizer) -> BytePairTokenizer:
    tokens, merges = _strings(metadata, "tokens"), _strings(metadata, "merges")
    kinds = metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise CheckpointFormatError(f"tokenizer.ggml.token_type must have {len(tokens)} numbers, one for each token")
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise CheckpointFormatError("tokenizer.ggml.tokens has a token twice")
    pairs = []
    for merge in merges:
        first, _, second = merge.partition(" ")
        if not {first, second, first + second} <= vocabulary.keys():
            raise CheckpointFormatError(f"the merge {merge!r} joins or makes tokens that there are not")
        pairs.append((first, second))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    for place in np.flatnonzero(np.isin(kinds, (_UNKNOWN, _CONTROL, _USER_DEFINED))).tolist():
        special = kinds[place] != _USER_DEFINED
        tokenizer.add_tokens([AddedToken(tokens[place], special=special, normalized=False)])
    if (ends := _ends(metadata, tokens)) is not None:
        tokenizer.post_processor = ends
    return BytePairTokenizer(tokenizer)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise CheckpointFormatError(f"tokenizer.ggml.{key} must be strings")
    return value


def _roles(metadata: Mapping[str, Any], tokenizer: BytePairTokenizer) -> dict[str, str]:
    """Name the special tokens that the metadata gives a role, which it does by number."""
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    stated = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in _ROLES.items()}
    return {role: names[token] for role, token in stated.items() if type(token) is int and token in names}


def _ends(metadata: Mapping[str, Any], tokens: list[str]) -> processors.TemplateProcessing | None:
    """Put the tokens of beginning and end around a text where the metadata asks for them."""
    named: dict[str, str] = {}
    for end in ("bos", "eos"):
        if metadata.get(f"tokenizer.ggml.add_{end}_token") is True:
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
