"""Tokenizers: what every tokenizer offers, and the two that most rooms use, bytes and byte-level byte pairs."""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import tokenizers
import torch
from jaxtyping import Int32, Integer, UInt8
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

_FILE = "tokenizer.json"

# The tokenizers library keeps hundreds of bytes a token until a call returns, so a long text goes through in pieces.
_PIECE_CHARACTERS = 10_000

# GPT-2's pattern, by which `ByteLevel` splits words, never joins a letter or digit to white space after it. So a text
# may be cut there, and its pieces have the tokens that the whole has.
_SAFE_CUT = re.compile(r"(?<=\w)(?=[ \n])")


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into token ids from 0 to `vocabulary` - 1, and back."""

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of tokens that stand for no text, by name."""
        ...

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token, even where its name stands in the text."""
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


class ByteTokenizer:
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


class BytePairTokenizer:
    """Byte-level byte-pair encoding, as in GPT-2 (Radford et al. 2019, section 2.2), by Hugging Face tokenizers.

    Every byte is a token, so any text can be encoded. A tokenizer made by `train` gives back every text as it was; one
    made elsewhere may have been set up to normalise text, and then does so here, or may lack tokens for rare bytes (as
    SmolLM2's does for some control characters), which it then drops.

    Args:
        tokenizer: a byte-level BPE tokenizer. It is changed: special tokens are no longer found in text, and nothing is
            truncated or padded.

    Raises:
        ValueError: another kind of tokenizer.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        if not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise ValueError(
                f"a tokenizer of {type(tokenizer.model).__name__} decoded by {type(tokenizer.decoder).__name__} is not "
                "byte-level BPE: it must be of BPE and decoded by ByteLevel"
            )
        # Text is data: a special token's name inside it must not act as the token.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        added = tokenizer.get_added_tokens_decoder()
        self._special_names = {token: content.content for token, content in added.items() if content.special}
        self._may_be_cut = tokenizer.normalizer is None and _splits_as_gpt2(tokenizer.pre_tokenizer)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, special_tokens: Sequence[str] = ()) -> "BytePairTokenizer":
        """Learn merges from texts; the same texts give the same tokenizer.

        Ids 0 to 255 are the bytes in GPT-2's order, then come the merges in the order in which they were learned, and
        the special tokens last. A pair is merged only if it was seen twice.

        Args:
            texts: what to learn from; pairs across two texts are not counted.
            vocabulary: number of tokens, bytes and special tokens among them.
            special_tokens: their names.

        Raises:
            ValueError: a vocabulary with no room for the bytes and the special tokens, or larger than the texts have
                pairs for; special tokens that are empty, repeated, or ordinary tokens too; one string for texts, or
                half of a surrogate pair in them.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string of {len(texts)} characters; it must be several texts, as [text]")
        special_tokens = list(special_tokens)
        if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
            raise ValueError(f"special tokens {special_tokens} must have names, each its own")
        merged = vocabulary - len(special_tokens)
        if merged < 256:
            raise ValueError(
                f"a vocabulary of {vocabulary} has no room for 256 bytes and {len(special_tokens)} special tokens: "
                f"it must be at least {256 + len(special_tokens)}"
            )
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=merged,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_checked(texts), trainer)
        found = tokenizer.get_vocab_size()
        if found < merged:
            raise ValueError(
                f"the texts have pairs for a vocabulary of {found + len(special_tokens)}, special tokens included, "
                f"not for {vocabulary}: ask for no more, or give more text"
            )
        ordinary = sorted(name for name in special_tokens if tokenizer.token_to_id(name) is not None)
        if ordinary:
            raise ValueError(f"special tokens {ordinary} are ordinary tokens too: choose names such as <|end|>")
        tokenizer.add_special_tokens(special_tokens)
        return cls(tokenizer)

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        return self._vocabulary

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens, by name."""
        return MappingProxyType({name: token for token, name in self._special_names.items()})

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token, even where its name stands in the text.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        return [token for tokens in self._encoded(text) for token in tokens]

    def encode_framed(self, text: str) -> list[int]:
        """Give the tokens of a text between the special tokens that the published model expects around one, if any.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        _utf8(text)
        return self._tokenizer.encode(text).ids

    def encode_to_tensor(self, text: str) -> Int32[Tensor, " tokens"]:
        """Give the tokens of a text in four bytes each; ten million characters take seconds, not minutes.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        stored = array("i")
        for tokens in self._encoded(text):
            stored.extend(tokens)
        return torch.frombuffer(stored, dtype=torch.int32) if stored else torch.empty(0, dtype=torch.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, with `�` for bytes that are not UTF-8, and special tokens by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(tokens, self.vocabulary)
        text = []
        # The library would take a special token's name for a spelling of bytes.
        for name, run in groupby(tokens, self._special_names.get):
            same = list(run)
            text.append(self._tokenizer.decode(same, skip_special_tokens=False) if name is None else name * len(same))
        return "".join(text)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` in the format of Hugging Face tokenizers."""
        _write(folder, self._tokenizer.to_str(pretty=True))

    @classmethod
    def load(cls, folder: Path | str) -> "BytePairTokenizer":
        """Read the `tokenizer.json` of a folder, ours or that of a published model with byte-level BPE.

        Raises:
            FileNotFoundError: the folder has no `tokenizer.json`.
            ValueError: the file is damaged, or another kind of tokenizer's.
        """
        path = _existing_file(folder)
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises nothing more specific.
            raise ValueError(f"{path} does not describe a tokenizer: {error}") from error
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _encoded(self, text: str) -> Iterator[list[int]]:
        _utf8(text)
        for piece in _pieces(text) if self._may_be_cut else (text,):
            yield self._tokenizer.encode(piece, add_special_tokens=False).ids


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = _SAFE_CUT.search(text, start + _PIECE_CHARACTERS)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _splits_as_gpt2(pre_tokenizer: object) -> bool:
    return (
        isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and not pre_tokenizer.add_prefix_space
    )


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
