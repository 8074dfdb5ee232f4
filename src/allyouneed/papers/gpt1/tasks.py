"""What the experiment reads: unlabelled prose, and four labelled tasks of BIG-bench, one for each transformation."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Int32
from torch import Tensor

from allyouneed.data import Split, documents
from allyouneed.data.brown import brown
from allyouneed.data.tasks import Example, task

from .byte_pairs import EndOfWordBPE
from .inputs import Examples, Row, Special, assemble, classification, entailment, multiple_choice, similarity

CHARACTERS = 4
"""Of a quote and its claim for each token of a row, beyond which they are left out: seven in eight are too long."""
LABELS: Mapping[str, tuple[str, ...]] = {
    "sentiment": ("ambivalent", "negative", "neutral", "positive"),
    "entailment": ("False", "Neither", "True"),
    "similarity": ("unrelated", "related"),
}
"""Classes of each task but multiple choice."""


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
    """Read the beginnings of novels and addresses and the Brown corpus, and learn a vocabulary of this size from them.

    Args:
        vocabulary: tokens, without those that fine-tuning adds.
        share: of each novel and address that is read.
    """
    texts = [text[: int(share * len(text))] for text in documents("train")]
    texts += ["\n".join(map(_typed, text.words)) for text in brown("train")]
    tokenizer = EndOfWordBPE.train(texts, vocabulary)
    return Corpus(tokenizer, torch.cat([tokenizer.encode_to_tensor(text) for text in texts]))


def _typed(words: Sequence[str]) -> str:
    """Join words of the Brown corpus, whose quotes have two marks each; the tasks' do not."""
    return " ".join(words).replace("``", '"').replace("''", '"')


Drawn = tuple[list[Row], int]
"""An example's rows and its label."""


class Draw:
    """Examples of a task's split in an order that a seed decides, so that fewer of them are the first of more.

    Args:
        split: of the task.
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

    def questions(self, name: str) -> list[Example]:
        """Give a task's examples in the drawn order."""
        drawn = list(task(name, self.split).examples)
        self.random.shuffle(drawn)
        return drawn

    def encode(self, text: str) -> list[int]:
        """Give a text's tokens."""
        return self.tokenizer.encode(text)

    def sentiment(self) -> Iterator[Drawn]:
        """Classification: opinions, which are positive, negative, neutral or ambivalent (multiemo)."""
        for example in self.questions("sentiment"):
            yield classification(self.encode(example.text), self.special), example.label

    def entailment(self) -> Iterator[Drawn]:
        """Entailment: a quote of Wikipedia, and whether a claim is true, false or neither by it (VitaminC)."""
        for example in self.questions("vitaminc"):
            if len(example.text) > CHARACTERS * self.longest:
                continue
            quote, _, claim = example.text.partition("\nClaim:")
            yield entailment(self.encode(quote), self.encode(claim), self.special), example.label

    def similarity(self) -> Iterator[Drawn]:
        """Similarity: two facts that a writer put together as related, or two that are of different pairs (QASC)."""
        pairs = [example.text.split("Sentence2:") for example in self.questions("qasc_overlap")]
        sentences = [(one.removeprefix("Sentence1:").strip(), other.strip()) for one, other in pairs]
        together = set(sentences)
        # Of the few that are scored each is asked about both ways.
        both = self.split != "train"
        for one, other in sentences:
            kinds = [True, False] if both else [self.random.random() < 0.5]
            for related in kinds:
                second = other
                while not related and (one, second) in together:
                    second = self.random.choice(sentences)[1]
                yield similarity(self.encode(one), self.encode(second), self.special), int(related)

    def choice(self) -> Iterator[Drawn]:
        """Multiple choice: a fact and a question, which it answers, with the right answer and a wrong one (QASC)."""
        for example in self.questions("qasc_wrong"):
            asked, _, right = example.text.partition("\nCorrect Answer:")
            # Of the few that are scored each is asked with every wrong answer.
            wrong = example.answers if self.split != "train" else example.answers[:1]
            for answer in wrong:
                options = [self.encode(right), self.encode(answer)]
                label = int(self.random.random() < 0.5)
                rows = multiple_choice(self.encode(asked), options[:: 1 - 2 * label], self.special)
                yield rows, label


TASKS: Mapping[str, Callable[[Draw], Iterator[Drawn]]] = {
    "sentiment": Draw.sentiment,
    "entailment": Draw.entailment,
    "similarity": Draw.similarity,
    "choice": Draw.choice,
}
"""One of each kind; similarity and multiple choice are made of the same facts."""


@cache
def labelled(kind: str, split: Split, source: Corpus, seed: int, longest: int, count: int) -> Examples:
    """Draw examples whose rows are not longer than the model reads; all that there are where they are fewer.

    Raises:
        ValueError: no example is short enough.
    """
    kept: list[Drawn] = []
    for rows, label in TASKS[kind](Draw(split, source, seed, longest)):
        if len(kept) == count:
            break
        if max(map(len, rows)) <= longest:
            kept.append((rows, label))
    if not kept:
        raise ValueError(f"no example of {kind} has rows of {longest} tokens or fewer")
    rows, labels = zip(*kept, strict=True)
    return assemble(rows, labels, longest=longest, classes=len(LABELS[kind]) if kind in LABELS else None)
