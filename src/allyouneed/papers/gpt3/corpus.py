"""Training text that mixes many tasks, and the tasks that are held out of it.

Every document is several solved examples of one task, one after another, as they stand in prompts. BIG-bench carries a
canary: models that are trained on this text are for the experiment and are not published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from allyouneed.data.tasks import ARITHMETIC, Example, task
from allyouneed.text import BytePairTokenizer

from .prompts import Layout

END = "<|end|>"
"""The special token that begins each document."""
TRAINED = (
    "fever",
    "vitaminc",
    "wikidata",
    "unscrambling",
    "mctaco_temporal",
    "mctaco_span",
    "mctaco_grammar",
    "winogrande",
    "essential_terms",
    "cosmosqa_right",
    *(name for name in ARITHMETIC if name.startswith(("arithmetic_1", "arithmetic_2"))),
)
"""The tasks of the training text. The three that models are tried on are not among them, nor others about QASC."""
LAYOUT = Layout("", "\nA:", "\n\n")
"""How all of them are written; without words that would tell the task."""


@dataclass(frozen=True)
class Mixture:
    """Documents of many tasks as tokens.

    Attributes:
        tokenizer: learned from these documents.
        examples: by task, the tokens of each of its examples, question and answer: as the first of a document, and
            after others.
    """

    tokenizer: BytePairTokenizer
    examples: Mapping[str, Sequence[tuple[Sequence[int], Sequence[int]]]]

    @property
    def end(self) -> int:
        """The token that begins a document."""
        return self.tokenizer.special_tokens[END]

    def documents(self, count: int, length: int, generator: np.random.Generator) -> Int64[Tensor, "rows tokens"]:
        """Draw tasks, each as often as any other, and fill a row with examples of each; the last one is cut off.

        Args:
            count: of the rows.
            length: tokens of a row.
            generator: of all draws.
        """
        names = list(self.examples)
        rows = []
        for number in generator.integers(len(names), size=count):
            own = self.examples[names[number]]
            row = [self.end, *own[int(generator.integers(len(own)))][0]]
            while len(row) < length:
                row += own[int(generator.integers(len(own)))][1]
            rows.append(row[:length])
        return torch.tensor(rows)


@cache
def mixture(vocabulary: int, most: int, longest: int) -> Mixture:
    """Read the training text, and learn its byte pairs.

    Args:
        vocabulary: of the tokenizer.
        most: examples of each task, evenly spaced; all where a task has fewer.
        longest: characters of a question; longer ones are left out.
    """
    read = {name: training_examples(name, most, longest) for name in TRAINED}
    texts = {
        name: [[written(one, first) for first in (True, False)] for one in own] for name, own in read.items() if own
    }
    tokenizer = BytePairTokenizer.train(
        ("".join(later for _, later in own) for own in texts.values()), vocabulary, [END]
    )
    return Mixture(
        tokenizer,
        {
            name: [(tokenizer.encode(first), tokenizer.encode(later)) for first, later in own]
            for name, own in texts.items()
        },
    )


def written(example: Example, first: bool) -> str:
    """Write a solved example, as the first of a document or after others."""
    return LAYOUT.question(example.text, first=first) + LAYOUT.answer(example.answers[0])


def training_examples(name: str, most: int, longest: int) -> Sequence[Example]:
    """Give the examples of a task that are in the training text."""
    short = [one for one in task(name, "train").examples if len(one.text) <= longest]
    return short[:: max(1, -(-len(short) // most))]
