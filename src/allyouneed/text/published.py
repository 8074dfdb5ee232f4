"""Tokenizers as models are published with them: any `tokenizer.json`, read whatever its kind."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import decoders, models

from .byte_pairs import BytePairTokenizer
from .library import LibraryTokenizer, read_library_tokenizer
from .tokenizers import ByteTokenizer, _check_ids, _existing_file


class PublishedTokenizer(LibraryTokenizer):
    """Any tokenizer of Hugging Face tokenizers, such as WordPiece or Unigram, as it was published.

    Unlike byte-level tokenizers these may lose text: what they normalise, or have no tokens for, does not come back.

    Args:
        tokenizer: it is changed: special tokens are no longer found in text, and nothing is truncated or padded.
    """

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens as far as they tell it, and special tokens by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(tokens, self.vocabulary)
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)


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
