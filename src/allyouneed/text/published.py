"""Tokenizers as models are published with them: any `tokenizer.json`, read whatever its kind."""

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tokenizers
import torch
from jaxtyping import Int32
from tokenizers import decoders, models
from torch import Tensor

from .tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer, _check_ids, _existing_file, _utf8, _write


class PublishedTokenizer:
    """Any tokenizer of Hugging Face tokenizers, such as WordPiece or Unigram, as it was published.

    Unlike byte-level tokenizers these may lose text: what they normalise, or have no tokens for, does not come back.

    Args:
        tokenizer: it is changed: special tokens are no longer found in text, and nothing is truncated or padded.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        # Text is data: a special token's name inside it must not act as the token.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        added = tokenizer.get_added_tokens_decoder()
        self._special = {content.content: token for token, content in added.items() if content.special}

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        return self._vocabulary

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens, by name."""
        return MappingProxyType(self._special)

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token, but the one for unknown words.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        _utf8(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_framed(self, text: str) -> list[int]:
        """Give the tokens of a text between the special tokens that the model expects around one, as `[CLS]`, `[SEP]`.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        _utf8(text)
        return self._tokenizer.encode(text).ids

    def encode_to_tensor(self, text: str) -> Int32[Tensor, " tokens"]:
        """Give the tokens of a long text in four bytes each.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        stored = array("i", self.encode(text))
        return torch.frombuffer(stored, dtype=torch.int32) if stored else torch.empty(0, dtype=torch.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens as far as they tell it, and special tokens by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(tokens, self.vocabulary)
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` in the format of Hugging Face tokenizers."""
        _write(folder, self._tokenizer.to_str(pretty=True))

    @classmethod
    def load(cls, folder: Path | str) -> "PublishedTokenizer":
        """Read the `tokenizer.json` of a folder.

        Raises:
            FileNotFoundError: the folder has no `tokenizer.json`.
            ValueError: the file is damaged.
        """
        return cls(_read(_existing_file(folder)))


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read a folder's `tokenizer.json` as the kind of tokenizer that it describes.

    Byte-level BPE comes as a `BytePairTokenizer`, bytes as a `ByteTokenizer`, all others as a `PublishedTokenizer`.

    Raises:
        FileNotFoundError: the folder has no `tokenizer.json`.
        ValueError: the file is damaged.
    """
    path = _existing_file(folder)
    try:
        content = json.loads(path.read_bytes())
        kind = content["model"].get("type") if isinstance(content["model"], dict) else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a tokenizer: {error!r}") from error
    if kind == "Bytes":
        return ByteTokenizer.load(folder)
    tokenizer = _read(path)
    if isinstance(tokenizer.model, models.BPE) and isinstance(tokenizer.decoder, decoders.ByteLevel):
        return BytePairTokenizer(tokenizer)
    return PublishedTokenizer(tokenizer)


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing more specific.
        raise ValueError(f"{path} does not describe a tokenizer: {error}") from error
