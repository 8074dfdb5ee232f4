"""What all tokenizers have that are made of the Hugging Face tokenizers library's parts."""

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tokenizers
import torch
from jaxtyping import Int32
from tokenizers import AddedToken
from torch import Tensor

from .special_tokens import SpecialTokensMixin, write_tokenizer_config
from .tokenizers import _existing_file, _utf8, _write

# Not `Self`, which type checkers at run time do not take outside a class that they decorate.
_Tokenizer = TypeVar("_Tokenizer", bound="LibraryTokenizer")

# Texts of one token or more in almost any vocabulary, by which it is found out what is put around a text.
_PROBES = ("a", "A", "1", ".", "的")
# Where the description of a sequence holds those of its parts.
_PARTS = ("normalizers", "pretokenizers")


class LibraryTokenizer(SpecialTokensMixin):
    """A tokenizer of the library, without its means to find special tokens in text, to truncate and to pad.

    Args:
        tokenizer: it is changed: special tokens are no longer found in text, and nothing is truncated or padded.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        # Text is data: a special token's name inside it must not act as the token.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._read_vocabulary()

    def _read_vocabulary(self) -> None:
        self._vocabulary = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_names = {token: content.content for token, content in added.items() if content.special}

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        return self._vocabulary

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens, by name."""
        return MappingProxyType({name: token for token, name in self._special_names.items()})

    def token_to_id(self, name: str) -> int | None:
        """Give the id of a token by its name; None where there is no such token."""
        return self._tokenizer.token_to_id(name)

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """The names of the tokens that have a role, by role, such as `eos_token`. It can be set.

        What gets a role becomes a special token.

        Raises:
            ValueError: on setting, an unknown role, or a name that is no token.
        """
        return super().special_tokens_map

    @special_tokens_map.setter
    def special_tokens_map(self, roles: Mapping[str, str]) -> None:
        SpecialTokensMixin.special_tokens_map.__set__(self, roles)
        ordinary = [name for name in dict.fromkeys(roles.values()) if name not in self._special_names.values()]
        if ordinary:
            self._tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ordinary])
            self._read_vocabulary()

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token, but the one for unknown words.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        return [token for tokens in self._encoded(text) for token in tokens]

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Give the tokens of a text between the special tokens that the published tokenizer puts around one, if any.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        _utf8(text)
        with panics_explained():
            return self._tokenizer.encode(text).ids

    def encode_after_special(self, text: str) -> list[int]:
        """Give the tokens of a text that stands behind special tokens, and not at the beginning of all.

        Some tokenizers put a space before the first word of all, some before the first after each special token.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        return self.encode(text) if self._after_special is None else _plain(self._after_special, text)

    def encode_continuation(self, text: str) -> list[int]:
        """Give the tokens of a text that goes on where another ended, so that no space is put before its first word.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        return self.encode(text) if self._continuing is None else _plain(self._continuing, text)

    @cached_property
    def _after_special(self) -> tokenizers.Tokenizer | None:
        return self._changed(_first_never)

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer | None:
        return self._changed(_never)

    def _changed(self, change: Callable[[Any], Any]) -> tokenizers.Tokenizer | None:
        """Make the tokenizer whose normalizer and pre-tokenizer are changed; None where nothing is to be changed."""
        parts = {"normalizer": self._tokenizer.normalizer, "pre_tokenizer": self._tokenizer.pre_tokenizer}
        states = {name: None if part is None else json.loads(part.__getstate__()) for name, part in parts.items()}
        changed = {name: change(state) for name, state in states.items()}
        if changed == states:
            return None
        made = tokenizers.Tokenizer.from_str(json.dumps({**json.loads(self._tokenizer.to_str()), **changed}))
        made.encode_special_tokens = True
        return made

    def encode_to_tensor(self, text: str) -> Int32[Tensor, " tokens"]:
        """Give the tokens of a long text in four bytes each.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        stored = array("i")
        for tokens in self._encoded(text):
            stored.extend(tokens)
        return torch.frombuffer(stored, dtype=torch.int32) if stored else torch.empty(0, dtype=torch.int32)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` in the library's format, and the roles of special tokens beside it."""
        _write(folder, self._tokenizer.to_str(pretty=True))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_tokenizer_config(folder, settings, self.special_tokens_map)

    @classmethod
    def load(cls: type[_Tokenizer], folder: Path | str) -> _Tokenizer:
        """Read the `tokenizer.json` of a folder, and what it says of special tokens' roles.

        Raises:
            FileNotFoundError: the folder has no `tokenizer.json`.
            ValueError: a file is damaged, or another kind of tokenizer's.
        """
        path = _existing_file(folder)
        made = read_library_tokenizer(path)
        try:
            tokenizer = cls(made)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        tokenizer.read_special_tokens_map(folder)
        return tokenizer

    def _encoded(self, text: str) -> Iterator[list[int]]:
        """Give the tokens of a text in one or several lists."""
        yield _plain(self._tokenizer, text)

    def _frame(self) -> tuple[Sequence[int], Sequence[int]]:
        for text in _PROBES:
            with panics_explained():
                encoding = self._tokenizer.encode(text)
            inside = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
            if inside:
                return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
        return (), ()


@contextmanager
def panics_explained() -> Iterator[None]:
    """Say in an ordinary error that the library gave up, as it does on expressions that take too long to match.

    Raises:
        ValueError: it panicked. That is no `Exception` by itself, and would end a server's thread.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer cannot read this: its library gave up ({error})") from None


def _plain(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    _utf8(text)
    with panics_explained():
        return tokenizer.encode(text, add_special_tokens=False).ids


def _first_never(state: Any) -> Any:
    """Change the description of a part so that it puts no space before the first word of all; other spaces stay."""
    if isinstance(state, list):
        return [_first_never(part) for part in state]
    if not isinstance(state, dict):
        return state
    if state.get("type") == "Metaspace" and state.get("prepend_scheme") == "first":
        return {**state, "prepend_scheme": "never"}
    return {key: _first_never(value) if key in _PARTS else value for key, value in state.items()}


def _never(state: Any) -> Any:
    """Change the description of a part so that it puts no space before any text; None where it did nothing else."""
    if isinstance(state, list):
        return [part for part in map(_never, state) if part is not None]
    kind = state.get("type") if isinstance(state, dict) else None
    if kind == "Prepend":
        return None
    if kind == "Metaspace":
        return {**state, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**state, "add_prefix_space": False}
    if kind is None:
        return state
    return {key: _never(value) if key in _PARTS else value for key, value in state.items()}


def read_library_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json` by the library.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with panics_explained():
            return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing more specific.
        raise ValueError(f"{path} does not describe a tokenizer: {error}") from error
