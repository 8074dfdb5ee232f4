"""The bytes that each token of a vocabulary stands for, which a token's text alone does not always tell."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from .published import BYTE_TOKEN
from .tokenizers import ByteTokenizer, Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Give the bytes of each token, by id, where it stands within a text; none for special tokens and unused ids.

    Joined, the bytes of tokens are the UTF-8 of what the tokenizer decodes them to, but for a space at the beginning,
    which SentencePiece-like tokenizers drop: `first_token_bytes` gives the bytes of tokens there.

    Raises:
        ValueError: a tokenizer whose tokens have no bytes of their own, such as WordPiece, where spaces depend on
            what stands beside a token.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return [bytes([byte]) for byte in range(256)]
    library: Any = getattr(tokenizer, "_tokenizer", None)
    if library is None or library.decoder is None:
        raise ValueError(f"the tokens of a {type(tokenizer).__name__} have no bytes of their own: it has no decoder")
    spell = _speller(json.loads(library.decoder.__getstate__()))
    special = set(tokenizer.special_tokens.values())
    found = [b""] * tokenizer.vocabulary
    for name, token in library.get_vocab().items():
        if token not in special:
            found[token] = spell(name)
    return found


def first_token_bytes(tokenizer: Tokenizer, within: Sequence[bytes]) -> list[bytes]:
    """Give the bytes of each token where it is a text's first: SentencePiece-like tokenizers drop a space there.

    Args:
        tokenizer: decodes.
        within: the bytes of tokens within a text, as `token_bytes` gives them.
    """
    spaced = (token for token, spelled in enumerate(within) if spelled[:1] == b" ")
    # A decoder does so with all tokens or with none.
    if all(tokenizer.decode([token])[:1] == " " for token in islice(spaced, 4)):
        return list(within)
    return [spelled.removeprefix(b" ") for spelled in within]


def _speller(decoder: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Give what turns a token's name into its bytes, by a decoder of the library as it is written in a file."""
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    replaced: list[tuple[str, str]] = []
    for step in steps:
        if step["type"] == "Replace" and "String" in step["pattern"]:
            replaced.append((step["pattern"]["String"], step["content"]))
        elif step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif step["type"] == "Strip":
            # At the beginning of a text alone, which `first_token_bytes` sees to.
            if step["stop"] or step["content"] != " " or step["start"] > 1 or "Fuse" not in kinds:
                raise ValueError(f"tokens that are stripped by {step} have no bytes of their own")
        elif step["type"] not in ("ByteLevel", "ByteFallback", "Fuse"):
            raise ValueError(
                f"tokens that are decoded by {step['type']} have no bytes of their own: what a token stands for "
                "depends on those beside it"
            )
    if "ByteLevel" in kinds:
        return _spell_byte_level

    def spell(name: str) -> bytes:
        if "ByteFallback" in kinds and (byte := BYTE_TOKEN.fullmatch(name)) is not None:
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            name = name.replace(old, new)
        return name.encode()

    return spell


def _byte_level_alphabet() -> dict[str, int]:
    """Give the character by which GPT-2's vocabulary names each byte: its own where it is printable, or one beyond."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    named = {chr(byte): byte for byte in printable}
    return named | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _spell_byte_level(name: str) -> bytes:
    if all(character in _ALPHABET for character in name):
        return bytes(_ALPHABET[character] for character in name)
    # A token that was added by its text.
    return name.encode()
