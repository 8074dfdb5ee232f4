"""What the experiment reads: unlabelled prose, and sentences of which the verb is to agree with its subject."""

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
from .inputs import Examples, Row, Special, assemble

LABELLED = 2
"""One in so many texts of the Brown corpus is for labelled examples, and is not read in pre-training."""
SINGULAR = {"is": "are", "was": "were", "has": "have"}
"""Forms of verbs for one subject, by those for several."""
FORMS = SINGULAR | {plural: singular for singular, plural in SINGULAR.items()}
"""The other form of each."""
CLOSED = frozenset(
    ("he", "she", "it", "they", "i", "we", "you", "there", "this", "that", "these", "those", "who", "which", "what")
)
"""Words that tell the form by themselves, or tell nothing, where they stand before the verb."""


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
    """Read novels' and addresses' beginnings and half of the Brown corpus's texts; learn a vocabulary from them.

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

    def agreements(self) -> Iterator[Drawn]:
        """Choose the form that agrees: a sentence's beginning up to its first verb, and the same with the other form.

        After Linzen et al. 2016 (section 2), as a choice between two rows. Before the verb stands a word that is none
        of `CLOSED`; as many verbs have one subject as several.
        """
        drawn = {True: 0, False: 0}
        for words in self.sentences():
            place = next((place for place, word in enumerate(words) if word in FORMS), 0)
            before = words[:place]
            if len(before) < 2 or not before[-1].isalpha() or before[-1].lower() in CLOSED:
                continue
            several = words[place] not in SINGULAR
            if drawn[several] > drawn[not several]:
                continue
            drawn[several] += 1
            options = [self.encode(typed([*before, form])) for form in (words[place], FORMS[words[place]])]
            label = int(self.random.random() < 0.5)
            yield [self.special.row(option) for option in options[:: 1 - 2 * label]], label

    def sentences(self) -> list[tuple[str, ...]]:
        """Give the Brown corpus's sentences in the drawn order, none of which was pre-trained on."""
        texts = brown(self.split)[:: LABELLED if self.split == "train" else 1]
        found = [words for text in texts for words in text.words]
        self.random.shuffle(found)
        return found


@cache
def labelled(split: Split, source: Corpus, seed: int, longest: int, count: int) -> Examples:
    """Draw choices whose rows are not longer than the model reads; all that there are where they are fewer.

    The labels come with the text, so that there are thousands to score.

    Raises:
        ValueError: no example is short enough.
    """
    kept: list[Drawn] = []
    for rows, label in Draw(split, source, seed, longest).agreements():
        if len(kept) == count:
            break
        if max(map(len, rows)) <= longest:
            kept.append((rows, label))
    if not kept:
        raise ValueError(f"no choice has rows of {longest} tokens or fewer")
    rows, labels = zip(*kept, strict=True)
    return assemble(rows, labels, longest=longest)
