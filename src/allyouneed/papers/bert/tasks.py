"""The labelled tasks, made of the Brown corpus: parts of speech, a kind of prose, and whether two passages belong."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from allyouneed.data import SPLITS, Split
from allyouneed.data.brown import IMAGINATIVE, base_tag, brown

from .pretraining import IGNORED
from .sentences import Rows, join
from .wordpiece import WordPieceTokenizer, words

LEAST_WORDS = 8
"""Words of a sentence below which nobody could say what kind of prose it is from."""
LEAST_APART = 5
"""Sentences between two passages of one text, so that neither goes on where the other ends."""


class Sentence(NamedTuple):
    """A sentence of the corpus.

    Attributes:
        tokens: its pieces.
        ends: for each word the place of its last piece: where a model that reads from the left has seen all of it.
        tags: for each word its part of speech.
    """

    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    tags: tuple[int, ...]


class Text(NamedTuple):
    """A text of the corpus: whether it is imaginative prose, and its sentences."""

    imaginative: bool
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class Corpus:
    """The Brown corpus in pieces of a vocabulary that was learned from its training texts.

    Attributes:
        tokenizer: the vocabulary.
        tags: the parts of speech, without what was added to them, that training has; others have the number of these.
        texts: of each split.
    """

    tokenizer: WordPieceTokenizer
    tags: tuple[str, ...]
    texts: dict[Split, tuple[Text, ...]]


@cache
def corpus(vocabulary: int) -> Corpus:
    """Read the corpus, and learn a vocabulary of this size from its training texts."""
    training = brown("train")
    tokenizer = WordPieceTokenizer.train(
        (" ".join(sentence) for text in training for sentence in text.words), vocabulary
    )
    tags = sorted({base_tag(tag) for text in training for sentence in text.tags for tag in sentence})
    numbers = {tag: number for number, tag in enumerate(tags)}

    def read(spelled: Sequence[str], tagged: Sequence[str]) -> Sentence:
        tokens: list[int] = []
        ends: list[int] = []
        for word in spelled:
            for part in words(word):
                if part:
                    tokens.extend(tokenizer.spell(part))
            ends.append(len(tokens) - 1)
        return Sentence(tuple(tokens), tuple(ends), tuple(numbers.get(base_tag(tag), len(tags)) for tag in tagged))

    texts: dict[Split, tuple[Text, ...]] = {
        split: tuple(Text(text.genre in IMAGINATIVE, tuple(map(read, text.words, text.tags))) for text in brown(split))
        for split in SPLITS
    }
    return Corpus(tokenizer, tuple(tags), texts)


class Examples(NamedTuple):
    """Labelled rows.

    Attributes:
        tokens: padded on the right.
        segments: 0 in sentence A, 1 in B.
        labels: of each row; or of each token, `IGNORED` where it is asked nothing.
    """

    tokens: Int[Tensor, "rows length"]
    segments: Int[Tensor, "rows length"]
    labels: Int[Tensor, "rows"] | Int[Tensor, "rows length"]


def tagging(source: Corpus, split: Split, count: int, seed: int, longest: int) -> Examples:
    """Draw sentences whose words are to be given their parts of speech; each word is asked at its last piece."""
    pool = [sentence for text in source.texts[split] for sentence in text.sentences]
    chosen = [pool[place] for place in _generator(seed).permutation(len(pool))[:count]]
    rows = join(source.tokenizer, [sentence.tokens for sentence in chosen], longest=longest)
    asked = [dict(zip(sentence.ends, sentence.tags, strict=True)) for sentence in chosen]
    # After [CLS]; a word that was cut off is not asked.
    width = rows.tokens.shape[1]
    labels = torch.tensor([[tags.get(place - 1, IGNORED) for place in range(width)] for tags in asked])
    labels[(rows.tokens == source.tokenizer.separator) | ~rows.present] = IGNORED
    return Examples(rows.tokens, rows.segments, labels)


def prose(source: Corpus, split: Split, count: int, seed: int, longest: int) -> Examples:
    """Draw sentences, half of them of informative prose (label 0) and half of imaginative (label 1)."""
    draw = _generator(seed)
    kinds = [
        [
            sentence.tokens
            for text in source.texts[split]
            if text.imaginative == imaginative
            for sentence in text.sentences
            if len(sentence.ends) >= LEAST_WORDS
        ]
        for imaginative in (False, True)
    ]
    labels = torch.arange(count) % 2
    orders = [iter(draw.permutation(len(kind)).tolist()) for kind in kinds]
    try:
        chosen = [kinds[label][next(orders[label])] for label in labels.tolist()]
    except StopIteration:
        raise ValueError(f"{split} has no {count} sentences, half of each kind of prose") from None
    return _labelled(join(source.tokenizer, chosen, longest=longest), labels)


def pairs(source: Corpus, split: Split, count: int, seed: int, longest: int) -> Examples:
    """Draw pairs of passages, half of them from one text (label 0), at some distance, and half from two (label 1)."""
    draw = _generator(seed)
    texts = [text.sentences for text in source.texts[split]]
    room = (longest - 3) // 2
    first, second = [], []
    labels = torch.arange(count) % 2
    for other in labels.tolist():
        one, two = draw.choice(len(texts), size=2, replace=False)
        place = int(draw.integers(len(texts[one])))
        first.append(_passage(texts[one], place, room))
        if other:
            second.append(_passage(texts[two], int(draw.integers(len(texts[two]))), room))
            continue
        apart = [index for index in range(len(texts[one])) if abs(index - place) > LEAST_APART]
        second.append(_passage(texts[one], apart[int(draw.integers(len(apart)))], room))
    return _labelled(join(source.tokenizer, first, second, longest=longest), labels)


def _passage(sentences: Sequence[Sentence], begin: int, room: int) -> list[int]:
    """Join sentences as long as they fit, at most `LEAST_APART` of them."""
    tokens: list[int] = []
    for sentence in sentences[begin : begin + LEAST_APART]:
        if tokens and len(tokens) + len(sentence.tokens) > room:
            break
        tokens.extend(sentence.tokens)
    return tokens[:room]


def _labelled(rows: Rows, labels: Tensor) -> Examples:
    return Examples(rows.tokens, rows.segments, labels)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
