"""What the experiment reads: unlabelled prose, and labelled examples of how a sentence goes on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Int32
from torch import Tensor

from allyouneed.data import Split, documents
from allyouneed.data.brown import brown

from .byte_pairs import EndOfWordBPE
from .inputs import Examples, Row, Special, assemble, multiple_choice

WORDS = (8, 24)
"""Words, marks of punctuation among them, that a sentence of the Brown corpus has at least and at most."""
LABELLED = 3
"""One in so many texts of the Brown corpus is for labelled examples, and is not read in pre-training."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """The unlabelled text.

    Attributes:
        tokenizer: learned from it.
        tokens: the text in tokens.
    """

    tokenizer: EndOfWordBPE
    tokens: Int32[Tensor, " tokens"]

    @property
    def special(self) -> Special:
        """The tokens that fine-tuning adds."""
        return Special.after(self.tokenizer.vocabulary)


@cache
def corpus(vocabulary: int, share: float) -> Corpus:
    """Read novels' and addresses' beginnings and two thirds of the Brown corpus's texts; learn a vocabulary from them.

    Args:
        vocabulary: tokens, without those that fine-tuning adds.
        share: of each novel and address that is read.
    """
    texts = [text[: int(share * len(text))] for text in documents("train")]
    read = [text for place, text in enumerate(brown("train")) if place % LABELLED]
    texts += ["\n".join(map(typed, text.words)) for text in read]
    tokenizer = EndOfWordBPE.train(texts, vocabulary)
    return Corpus(tokenizer, torch.cat([tokenizer.encode_to_tensor(text) for text in texts]))


def typed(words: Sequence[str]) -> str:
    """Join words of the Brown corpus, whose quotes have two marks each; the tasks' do not."""
    return " ".join(words).replace("``", '"').replace("''", '"')


Drawn = tuple[list[Row], int]
"""An example's rows and its label."""


class Draw:
    """Examples of a split in an order that a seed decides, so that fewer of them are the first of more.

    Args:
        split: of the Brown corpus.
        source: whose tokenizer to use.
        seed: of the order, and of what is drawn beside it.
        longest: tokens of a row; what is much longer need not be encoded.
    """

    def __init__(self, split: Split, source: Corpus, seed: int, longest: int):
        self.split: Split = split
        self.longest = longest
        self.special = source.special
        self.tokenizer = source.tokenizer
        self.random = random.Random(seed)

    def encode(self, text: str) -> list[int]:
        """Give a text's tokens."""
        return self.tokenizer.encode(text)

    def sentences(self) -> list[tuple[str, ...]]:
        """Give the Brown corpus's sentences of a usual length in the drawn order, none of which was pre-trained on."""
        texts = brown(self.split)[:: LABELLED if self.split == "train" else 1]
        found = [words for text in texts for words in text.words if WORDS[0] <= len(words) <= WORDS[1]]
        self.random.shuffle(found)
        return found

    def exchanged(self, words: Sequence[str]) -> Sequence[str]:
        """Exchange two neighbouring words that are not the same, as Conneau et al. 2018 do (bigram shift)."""
        places = [place for place in range(len(words) - 1) if words[place].lower() != words[place + 1].lower()]
        if not places:
            return words
        place = self.random.choice(places)
        return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]

    def continuations(self) -> Iterator[Drawn]:
        """Multiple choice: the first half of a sentence, with its second half and another's; after Story Cloze."""
        sentences = self.sentences()
        for place, words in enumerate(sentences):
            other = sentences[place - 1]
            first, *options = (
                self.encode(typed(part))
                for part in (words[: len(words) // 2], words[len(words) // 2 :], other[len(other) // 2 :])
            )
            label = int(self.random.random() < 0.5)
            yield multiple_choice(first, options[:: 1 - 2 * label], self.special), label


@cache
def labelled(split: Split, source: Corpus, seed: int, longest: int, count: int) -> Examples:
    """Draw choices whose rows are not longer than the model reads; all that there are where they are fewer.

    The labels come with the text, so that there are thousands to score.

    Raises:
        ValueError: no example is short enough.
    """
    kept: list[Drawn] = []
    for rows, label in Draw(split, source, seed, longest).continuations():
        if len(kept) == count:
            break
        if max(map(len, rows)) <= longest:
            kept.append((rows, label))
    if not kept:
        raise ValueError(f"no choice has rows of {longest} tokens or fewer")
    rows, labels = zip(*kept, strict=True)
    return assemble(rows, labels, longest=longest)
