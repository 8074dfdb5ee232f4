"""Input transformations: what distinguishes the tasks goes into rows of tokens, and the network stays the same."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from allyouneed.data.buckets import pad

PADDING = 0
"""The token that fills up rows, behind the extract token."""

Row = list[int]
"""One row that the model reads, from the start token to the extract token."""


class Special(NamedTuple):
    """The tokens that fine-tuning adds, whose embeddings are new.

    Attributes:
        start: ⟨s⟩, the first token of a row.
        delimiter: $, between two texts.
        extract: ⟨e⟩, the last token of a row, from whose vector the answer is read.
    """

    start: int
    delimiter: int
    extract: int

    @classmethod
    def after(cls, vocabulary: int) -> "Special":
        """Give the three tokens that follow a vocabulary."""
        return cls(vocabulary, vocabulary + 1, vocabulary + 2)

    def row(self, *texts: Sequence[int]) -> Row:
        """Join texts by delimiters, between the start and the extract token.

        Raises:
            ValueError: a text that has one of the three tokens in it.
        """
        row = [self.start]
        for place, text in enumerate(texts):
            mixed_up = next((token for token in text if token in self), None)
            if mixed_up is not None:
                raise ValueError(f"a text has the token {mixed_up}, which is special: {self}")
            row += [*([self.delimiter] if place else []), *text]
        return [*row, self.extract]


def classification(text: Sequence[int], special: Special) -> list[Row]:
    """Give the row of one text: ⟨s⟩ text ⟨e⟩."""
    return [special.row(text)]


def entailment(premise: Sequence[int], hypothesis: Sequence[int], special: Special) -> list[Row]:
    """Give the row of a premise and a hypothesis: ⟨s⟩ premise $ hypothesis ⟨e⟩."""
    return [special.row(premise, hypothesis)]


def similarity(one: Sequence[int], other: Sequence[int], special: Special) -> list[Row]:
    """Give two rows, since similar texts have no order: ⟨s⟩ one $ other ⟨e⟩ and ⟨s⟩ other $ one ⟨e⟩."""
    return [special.row(one, other), special.row(other, one)]


def multiple_choice(context: Sequence[int], options: Sequence[Sequence[int]], special: Special) -> list[Row]:
    """Give a row for each option: ⟨s⟩ context $ option ⟨e⟩.

    Args:
        context: the document, and behind it the question.
        options: what may be chosen.
        special: the added tokens.

    Raises:
        ValueError: fewer than two options.
    """
    if len(options) < 2:
        raise ValueError(f"a question has {len(options)} options: there must be two or more to choose from")
    return [special.row(context, option) for option in options]


class Examples(NamedTuple):
    """Labelled examples, padded on the right to one length.

    Attributes:
        tokens: the rows of each example. An option that an example does not have is a row of padding.
        labels: the right class, or the right option.
    """

    tokens: Int[Tensor, "examples rows length"]
    labels: Int[Tensor, " examples"]


def assemble(
    examples: Sequence[Sequence[Row]], labels: Sequence[int], *, longest: int, classes: int | None = None
) -> Examples:
    """Put the rows of examples into one tensor.

    Args:
        examples: rows as the transformations of this module give them.
        labels: of each example.
        longest: the most tokens of a row, those that the model has positions for.
        classes: number of labels; None for multiple choice, where each example has its own options.

    Raises:
        ValueError: no examples, another number of labels, an example without rows, a row that is too long, or a label
            that is out of range; the example is named by its place.
    """
    if not examples or len(examples) != len(labels):
        raise ValueError(f"{len(examples)} examples and {len(labels)} labels: there must be some, and as many of each")
    for place, (rows, label) in enumerate(zip(examples, labels, strict=True)):
        if not rows:
            raise ValueError(f"example {place} has no rows")
        length = max(map(len, rows))
        if length > longest:
            raise ValueError(
                f"example {place} has a row of {length} tokens, special tokens included; the model reads {longest}: "
                "shorten the text or leave it out"
            )
        possible = len(rows) if classes is None else classes
        if not 0 <= label < possible:
            raise ValueError(f"example {place} has the label {label}; it must be from 0 to {possible - 1}")
    most = max(map(len, examples))
    padded = pad([row for rows in examples for row in (*rows, *[[]] * (most - len(rows)))], PADDING)
    return Examples(padded.unflatten(0, (len(examples), most)), torch.tensor(list(labels)))
