"""Tokenizers: what every tokenizer offers, and the simplest of them, bytes."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from .special_tokens import SpecialTokensMixin

_FILE = "tokenizer.json"


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into token ids from 0 to `vocabulary` - 1, and back.

    A class of its own takes what it does not want to write itself from `SpecialTokensMixin`.
    """

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of tokens that stand for no text, by name."""
        ...

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """The names of special tokens that have a role, by role, such as `bos_token` and `eos_token`."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text; None where there is none."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; empty where there are none."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up rows; None where there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token, even where its name stands in the text."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Give the tokens of a text that a model is to continue, begun as its published tokenizer begins texts."""
        ...

    def encode_after_special(self, text: str) -> list[int]:
        """Give the tokens of a text that stands behind special tokens, and not at the beginning of all."""
        ...

    def encode_continuation(self, text: str) -> list[int]:
        """Give the tokens of a text that goes on where another ended, so that no space is put before its first word."""
        ...

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Give the tokens of a text between the special tokens that the published tokenizer puts around one, if any."""
        ...

    def encode_to_tensor(self, text: str) -> Integer[Tensor, " tokens"]:
        """Give the tokens of a long text, stored in few bytes each."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, with `�` for bytes that are not UTF-8, and special tokens by their names."""
        ...

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer into a folder, which is made where it is missing."""
        ...

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Read a tokenizer from the folder that `save` wrote."""
        ...


class ByteTokenizer(SpecialTokensMixin):
    """The bytes of the text's UTF-8: 256 tokens, nothing to train, and any text comes back as it was."""

    @property
    def vocabulary(self) -> int:
        """256."""
        return 256

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """None."""
        return MappingProxyType({})

    def encode(self, text: str) -> list[int]:
        """Give the bytes of a text.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        return list(_utf8(text))

    def encode_to_tensor(self, text: str) -> UInt8[Tensor, " tokens"]:
        """Give the bytes of a text in a tensor of bytes; millions take milliseconds.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        data = bytearray(_utf8(text))
        # torch refuses an empty buffer.
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of bytes, with `�` for those that are not UTF-8.

        Raises:
            ValueError: an id that is no byte.
        """
        _check_ids(tokens, self.vocabulary)
        return bytes(tokens).decode("utf-8", errors="replace")

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, which tells no more than what kind of tokenizer this is."""
        _write(folder, json.dumps({"model": {"type": "Bytes"}}))

    @classmethod
    def load(cls, folder: Path | str) -> "ByteTokenizer":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder has no `tokenizer.json`.
            ValueError: the file is damaged, or another kind of tokenizer's.
        """
        path = _existing_file(folder)
        try:
            kind = json.loads(path.read_bytes())["model"]["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not describe a tokenizer: {error!r}") from error
        if kind != "Bytes":
            raise ValueError(f"{path} describes a tokenizer of type {kind!r}; a byte tokenizer's type is 'Bytes'")
        return cls()


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"character {error.start} of the text, {half!r}, is half of a surrogate pair and has no UTF-8; "
            "text that was read with errors='surrogateescape' must be read otherwise"
        ) from error


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        _utf8(text)
        yield text


def _check_ids(tokens: Sequence[int], vocabulary: int) -> None:
    outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise ValueError(f"token {outside} is not in the vocabulary: ids are 0 to {vocabulary - 1}")


def _existing_file(folder: Path | str) -> Path:
    path = Path(folder) / _FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokenizer in {folder}: {_FILE} is missing")
    return path


def _write(folder: Path | str, content: str) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{_FILE}.part"
    part.write_text(content, encoding="utf-8")
    part.replace(folder / _FILE)
