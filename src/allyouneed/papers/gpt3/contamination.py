"""Did the test stand in the training text? Overlaps of word n-grams, and training text cleaned of them (appendix C)."""

import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Gram = tuple[str, ...]

FILTER_WORDS = 13
"""Words of a gram by which training text was cleaned."""
LEAST_WORDS, MOST_WORDS = 8, 13
"""Bounds of the number of words by which test examples are called dirty."""

_WORD = re.compile(r"\S+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Give the words of a text: lower case, cut at white space, without punctuation, which alone is no word."""
    return [word for word, _, _ in _placed(text)]


def gram_length(examples: Sequence[str], least: int = LEAST_WORDS) -> int:
    """Give the number of words by which a data set's overlaps are found: the 5th percentile of its examples' lengths.

    Args:
        examples: texts of the data set.
        least: 8 in the paper, for shorter grams coincide; it made an exception of synthetic tasks, such as scrambled
            words, for which 1 may be given.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("there are no examples, so their length has no percentile")
    percentile = int(np.percentile([len(words(text)) for text in examples], 5))
    return min(MOST_WORDS, max(least, percentile))


def dirty(examples: Sequence[str], documents: Iterable[str], length: int) -> list[bool]:
    """Tell which examples share a gram of so many words with any training document.

    Memory grows with the examples, not with the documents, which may be a stream. An example of fewer words has no
    gram, and is clean.

    Args:
        examples: test texts.
        documents: training texts.
        length: words of a gram, as `gram_length` gives it; at least 1.

    Raises:
        ValueError: a length below 1.
    """
    own = [set(_grams(words(text), length)) for text in examples]
    wanted = set().union(*own)
    found: set[Gram] = set()
    for text in documents:
        found |= wanted.intersection(_grams(words(text), length))
    return [not grams.isdisjoint(found) for grams in own]


@dataclass(frozen=True)
class Filter:
    """Takes out of training text what stands in tests as well.

    Attributes:
        length: words of a gram.
        window: characters that are taken out with a gram on either side of it (the paper speaks of a window around it).
        shortest: characters below which a remaining piece is thrown away.
        most_pieces: a document that falls into more is thrown away whole.
        most_documents: a gram that stands in more documents than this is common property, and stays.
    """

    length: int = FILTER_WORDS
    window: int = 200
    shortest: int = 200
    most_pieces: int = 10
    most_documents: int = 10

    def colliding(self, documents: Iterable[str], tests: Iterable[str]) -> set[Gram]:
        """Give the grams of tests that stand in at least one document, and in few enough to count."""
        wanted = {gram for text in tests for gram in _grams(words(text), self.length)}
        counts: Counter[Gram] = Counter()
        for text in documents:
            counts.update(wanted.intersection(_grams(words(text), self.length)))
        return {gram for gram, count in counts.items() if count <= self.most_documents}

    def cleaned(self, document: str, grams: Collection[Gram]) -> list[str]:
        """Give the pieces of a document that remain around the grams that are taken out of it."""
        placed = _placed(document)
        cuts: list[tuple[int, int]] = []
        for first in range(len(placed) - self.length + 1):
            run = placed[first : first + self.length]
            if tuple(word for word, _, _ in run) in grams:
                low, high = max(0, run[0][1] - self.window), min(len(document), run[-1][2] + self.window)
                if cuts and low <= cuts[-1][1]:
                    cuts[-1] = (cuts[-1][0], high)
                else:
                    cuts.append((low, high))
        if not cuts:
            return [document]
        edges = [0, *(edge for cut in cuts for edge in cut), len(document)]
        pieces = [document[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        if len(pieces) > self.most_pieces:
            return []
        return [piece for piece in pieces if len(piece) >= self.shortest]


def _placed(text: str) -> list[tuple[str, int, int]]:
    """Give each word with the place where it begins and ends in the text."""
    found = ((match[0].lower().translate(_PUNCTUATION), match.start(), match.end()) for match in _WORD.finditer(text))
    return [(word, start, end) for word, start, end in found if word]


def _grams(text: Sequence[str], length: int) -> Iterable[Gram]:
    if length < 1:
        raise ValueError(f"grams of {length} words are out of range: at least 1")
    return (tuple(text[start : start + length]) for start in range(len(text) - length + 1))
