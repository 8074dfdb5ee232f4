"""Byte-level byte-pair encoding: learned and applied from scratch, in the format that GPT-2's vocabulary came in."""

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from allyouneed.text import SpecialTokensMixin
from allyouneed.text.special_tokens import write_tokenizer_config

from .merges import ALPHABET, BYTES, CHARACTERS, Pair, learn_merges, words

_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""The vocabulary and the merges: as Hugging Face names the two files, and as they were published with GPT-2."""
_HEADER = "#version: 0.2"
# Longer words are rare, and would fill the memory.
_LONGEST_KEPT, _WORDS_KEPT = 32, 1 << 16


class ByteLevelBPE(SpecialTokensMixin):
    """A tokenizer of byte pairs: 256 tokens are the bytes, so that any text can be encoded and comes back as it was.

    Text is cut into words by `PATTERN`. Within a word, the neighbours whose merge was learned first are merged, until
    no neighbours have a merge.

    Source: Radford et al. 2019, section 2.2.

    Args:
        ids: of every token, from 0 without a gap; tokens are spelled in `byte_characters`. Those that are neither a
            byte nor made by a merge are special.
        merges: pairs of tokens, the first learned first. Each is of bytes or of tokens merged before.

    Raises:
        ValueError: ids with gaps, a missing byte, a merge of tokens or to a token that there is not, or a merge that
            comes before those that make its parts, or twice.
    """

    def __init__(self, ids: Mapping[str, int], merges: Sequence[tuple[str, str]]):
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"the ids of {len(ids)} tokens must be 0 to {len(ids) - 1}, each once")
        missing = [character for character in ALPHABET if character not in ids]
        if missing:
            raise ValueError(f"{len(missing)} of the 256 bytes have no token, {missing[0]!r} among them: all must")
        made = set(ALPHABET)
        self._merges: dict[Pair, tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            unmade = [token for token in (left, right) if token not in made]
            if unmade:
                raise ValueError(f"merge {rank}, {left!r} and {right!r}: no merge before it makes {unmade[0]!r}")
            if left + right not in ids:
                raise ValueError(f"merge {rank}, {left!r} and {right!r}: the vocabulary lacks {left + right!r}")
            pair = (ids[left], ids[right])
            if pair in self._merges:
                raise ValueError(f"merge {rank}, {left!r} and {right!r}, is there twice")
            self._merges[pair] = (rank, ids[left + right])
            made.add(left + right)
        self._ids = dict(ids)
        self._spelled_merges = list(merges)
        self._special = {name: token for name, token in ids.items() if name not in made}
        self._byte_ids = [ids[character] for character in CHARACTERS]
        self._content = [b""] * len(ids)
        for spelling, token in ids.items():
            name = spelling in self._special
            self._content[token] = spelling.encode() if name else bytes(BYTES[character] for character in spelling)
        self._kept_tokens = lru_cache(_WORDS_KEPT)(self._tokens_of)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, special_tokens: Sequence[str] = ()) -> "ByteLevelBPE":
        """Learn merges from texts; the same texts give the same tokenizer.

        Ids 0 to 255 are the bytes in GPT-2's order, then come the merges in the order in which they were learned, and
        the special tokens last.

        Args:
            texts: what to learn from; pairs across two words are not counted.
            vocabulary: number of tokens, bytes and special tokens among them.
            special_tokens: their names.

        Raises:
            ValueError: a vocabulary with no room for the bytes and the special tokens, or larger than the texts have
                pairs for; special tokens that are empty, repeated, or ordinary tokens too; one string for texts, or
                half of a surrogate pair in them.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string of {len(texts)} characters; it must be several texts, as [text]")
        least = 256 + len(special_tokens)
        if vocabulary < least:
            raise ValueError(
                f"a vocabulary of {vocabulary} has no room for 256 bytes and {len(special_tokens)} special tokens: "
                f"it must be at least {least}"
            )
        counts: Counter[str] = Counter()
        for text in texts:
            _check_utf8(text)
            counts.update(words(text))
        learned = learn_merges({word.encode(): count for word, count in counts.items()}, vocabulary - least)
        spellings = list(ALPHABET)
        merges: list[tuple[str, str]] = []
        for (left, right), token in learned:
            merges.append((spellings[left], spellings[right]))
            if token == len(spellings):
                spellings.append(spellings[left] + spellings[right])
        if len(spellings) + len(special_tokens) < vocabulary:
            raise ValueError(
                f"the texts have pairs for a vocabulary of {len(spellings) + len(special_tokens)}, special tokens "
                f"included, not for {vocabulary}: ask for no more, or give more text"
            )
        ids = {spelling: token for token, spelling in enumerate([*spellings, *special_tokens])}
        if len(ids) < vocabulary or "" in ids:
            raise ValueError(f"special tokens {list(special_tokens)} must have names, each its own and no token's")
        return cls(ids, merges)

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        return len(self._ids)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens, by name."""
        return MappingProxyType(self._special)

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token, even where its name stands in the text.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        _check_utf8(text)
        return [token for word in words(text) for token in self._tokens(word)]

    def encode_to_tensor(self, text: str) -> Int32[Tensor, " tokens"]:
        """Give the tokens of a long text in four bytes each.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        _check_utf8(text)
        stored = array("i")
        for word in words(text):
            stored.extend(self._tokens(word))
        return torch.frombuffer(stored, dtype=torch.int32) if stored else torch.empty(0, dtype=torch.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, with `�` for bytes that are not UTF-8, and special tokens by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        content = self._content
        outside = next((token for token in tokens if not 0 <= token < len(content)), None)
        if outside is not None:
            raise ValueError(f"token {outside} is not in the vocabulary: ids are 0 to {len(content) - 1}")
        return b"".join([content[token] for token in tokens]).decode("utf-8", errors="replace")

    def byte_lengths(self) -> Int64[Tensor, " vocabulary"]:
        """Give how many bytes of text each token stands for; 0 for special tokens."""
        special = set(self._special.values())
        return torch.tensor([0 if token in special else len(part) for token, part in enumerate(self._content)])

    def save(self, folder: Path | str) -> None:
        """Write `vocab.json` and `merges.txt`, by transformers' names, and the roles of special tokens."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        merges = [_HEADER, *(f"{left} {right}" for left, right in self._spelled_merges)]
        contents = (json.dumps(self._ids), "\n".join(merges) + "\n")
        written = []
        for name, content in zip(_FILES[0], contents, strict=True):
            part = folder / f"{name}.part"
            part.write_text(content, encoding="utf-8")
            written.append((part, folder / name))
        for part, whole in written:
            part.replace(whole)
        write_tokenizer_config(folder, {"tokenizer_class": "GPT2Tokenizer"}, self.special_tokens_map)

    @classmethod
    def load(cls, folder: Path | str) -> "ByteLevelBPE":
        """Read a vocabulary as GPT-2's was published: `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`.

        Raises:
            FileNotFoundError: the folder has neither pair of files.
            ValueError: a file is damaged, or the two do not fit.
        """
        folder = Path(folder)
        pairs = ([folder / name for name in names] for names in _FILES)
        paths = next((pair for pair in pairs if all(path.is_file() for path in pair)), None)
        if paths is None:
            expected = ", or ".join(" and ".join(names) for names in _FILES)
            raise FileNotFoundError(f"there is no vocabulary in {folder}: it has neither {expected}")
        try:
            ids = json.loads(paths[0].read_bytes())
            if not isinstance(ids, dict) or not all(type(token) is int for token in ids.values()):
                raise ValueError("it must map each token to its id")
        except ValueError as error:
            raise ValueError(f"{paths[0]} is no vocabulary: {error}") from error
        merges: list[tuple[str, str]] = []
        try:
            lines = paths[1].read_text(encoding="utf-8").split("\n")
        except ValueError as error:
            raise ValueError(f"{paths[1]} lists no merges: {error}") from error
        for number, line in enumerate(lines, start=1):
            if not line or (number == 1 and line.startswith("#version")):
                continue
            left, _, right = line.partition(" ")
            if not left or not right or " " in right:
                raise ValueError(f"{paths[1]}, line {number} is {line!r}: it must be two tokens and a space between")
            merges.append((left, right))
        try:
            tokenizer = cls(ids, merges)
        except ValueError as error:
            raise ValueError(f"{paths[0].name} and {paths[1].name} in {folder}: {error}") from error
        tokenizer.read_special_tokens_map(folder)
        return tokenizer

    def _tokens(self, word: str) -> Sequence[int]:
        return self._kept_tokens(word) if len(word) <= _LONGEST_KEPT else self._tokens_of(word)

    def _tokens_of(self, word: str) -> tuple[int, ...]:
        """Merge the bytes of a word in the order in which merges were learned, equal ones from the left.

        The tokens are a linked list, and the merges that are possible a queue: n log n steps, so that a word of a
        million letters is no attack.
        """
        token = [self._byte_ids[byte] for byte in word.encode()]
        end = len(token)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        merges = self._merges
        queue = [(merges[pair][0], place, pair) for place, pair in enumerate(pairwise(token)) if pair in merges]
        heapq.heapify(queue)
        while queue:
            _, place, pair = heapq.heappop(queue)
            following = after[place]
            # Either neighbour may have been merged since; what was merged away is marked by -1.
            if following >= end or (token[place], token[following]) != pair:
                continue
            token[place], token[following] = merges[pair][1], -1
            after[place] = after[following]
            if after[place] < end:
                before[after[place]] = place
            for left in (before[place], place):
                if left >= 0 and after[left] < end:
                    pair = (token[left], token[after[left]])
                    if pair in merges:
                        heapq.heappush(queue, (merges[pair][0], left, pair))
        return tuple(part for part in token if part >= 0)


def _check_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text, {text[error.start]!r}, is half of a surrogate pair and has no "
            "UTF-8; text that was read with errors='surrogateescape' must be read otherwise"
        ) from error
