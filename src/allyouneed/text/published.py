"""Tokenizers as models are published with them: any `tokenizer.json`, read whatever its kind."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models

from .byte_pairs import BytePairTokenizer
from .library import LibraryTokenizer, panics_explained, read_library_tokenizer
from .tokenizers import ByteTokenizer, _check_ids, _existing_file

BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies spell a byte, for what they have no other token for."""
_INVALID = "\N{REPLACEMENT CHARACTER}"


class PublishedTokenizer(LibraryTokenizer):
    """Any tokenizer of Hugging Face tokenizers, such as WordPiece or Unigram, as it was published.

    Unlike byte-level tokenizers these may lose text: what they normalise, or have no tokens for, does not come back.

    Args:
        tokenizer: it is changed: special tokens are no longer found in text, and nothing is truncated or padded.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        super().__init__(tokenizer)
        falls_back = tokenizer.decoder is not None and b"ByteFallback" in tokenizer.decoder.__getstate__()
        names = (
            {token: BYTE_TOKEN.fullmatch(name) for name, token in tokenizer.get_vocab().items()} if falls_back else {}
        )
        self._bytes = {token: int(match[1], 16) for token, match in names.items() if match is not None}

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens as far as they tell it, and special tokens by their names.

        A token that stands for a byte, and with its neighbours for no character, becomes `�`, as SentencePiece has it.
        (The library would give up all characters of a run of bytes of which one is wrong.)

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(tokens, self.vocabulary)
        wrong = self._wrong_bytes(tokens) if self._bytes else ()
        with panics_explained():
            if not wrong:
                return self._tokenizer.decode(list(tokens), skip_special_tokens=False)
            assert self._tokenizer.decoder is not None
            names = (_INVALID if place in wrong else self._tokenizer.id_to_token(id) for place, id in enumerate(tokens))
            return self._tokenizer.decoder.decode([name for name in names if name is not None])

    def _wrong_bytes(self, tokens: Sequence[int]) -> set[int]:
        """Give the places of tokens that stand for bytes which are part of no character."""
        wrong: set[int] = set()
        places: list[int] = []
        for place, token in enumerate([*tokens, -1]):
            if token in self._bytes:
                places.append(place)
            elif places:
                run = bytes(self._bytes[tokens[one]] for one in places)
                wrong.update(places[index] for index in _invalid(run))
                places = []
        return wrong


def _invalid(content: bytes) -> Iterator[int]:
    """Give the places of bytes that belong to no character of UTF-8."""
    begin = 0
    while begin < len(content):
        try:
            content[begin:].decode("utf-8")
            return
        except UnicodeDecodeError as error:
            yield from range(begin + error.start, begin + error.end)
            begin += error.end


def load_tokenizer(folder: Path | str) -> ByteTokenizer | BytePairTokenizer | PublishedTokenizer:
    """Read a folder's `tokenizer.json` as the kind of tokenizer that it describes, and the roles of special tokens.

    Byte-level BPE comes as a `BytePairTokenizer`, bytes as a `ByteTokenizer`, all others as a `PublishedTokenizer`.

    Raises:
        FileNotFoundError: the folder has no `tokenizer.json`.
        ValueError: a file is damaged.
    """
    path = _existing_file(folder)
    try:
        content = json.loads(path.read_bytes())
        kind = content["model"].get("type") if isinstance(content["model"], dict) else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a tokenizer: {error!r}") from error
    if kind == "Bytes":
        return ByteTokenizer.load(folder)
    read = read_library_tokenizer(path)
    byte_pairs = isinstance(read.model, models.BPE) and isinstance(read.decoder, decoders.ByteLevel)
    tokenizer = BytePairTokenizer(read) if byte_pairs else PublishedTokenizer(read)
    tokenizer.read_special_tokens_map(folder)
    return tokenizer
