"""Sequences of different lengths in batches of about one length, as pure functions of the step.

Like `batches`, import this module by its name; it imports torch.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .batches import _check_at_least, _generator

Sequences = Sequence[Sequence[int]]


class Buckets:
    """Batches of items whose longest sequences are about equally long, each item once an epoch.

    An item is one sequence of each side: a source and its target, say. Items are sorted by the longest of their
    sequences, those of one length in an order that is drawn anew each epoch, and cut into batches that hold as many
    tokens of each side as they may, padding included; then the batches are shuffled. So an epoch has the same number of
    batches as any other, and one of them may be small.

    Called with a step, counted from 0, it gives that step's batch, whatever was asked before: a tensor for each side,
    padded on the right.

    Args:
        sides: the sequences of each side; the same place in each is one item.
        tokens: the most tokens of one side in a batch, padding included.
        padding: the token that fills up sequences; it stands in none of them.
        seed: of all orders; 0 or more.

    Raises:
        ValueError: no sides or items, sides of different numbers of items, an empty sequence, one with the padding
            token in it, one longer than a batch, or a number out of range.
    """

    def __init__(self, sides: Sequence[Sequences], tokens: int, padding: int, seed: int):
        _check_at_least(0, seed=seed)
        self.sides = sides
        self.padding = padding
        self.seed = seed
        self._longest = _longest(sides, tokens, padding)
        self._sorted = np.sort(self._longest)
        self._cuts = _cuts(self._sorted, tokens)
        self.batches_per_epoch = len(self._cuts) - 1
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[Int64[Tensor, "batch _"], ...]:
        """Give the batch of a step."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            # Kept because the next step most likely falls into the same epoch.
            generator = _generator(self.seed, epoch)
            drawn = generator.permutation(len(self._longest))
            items = drawn[np.argsort(self._longest[drawn], kind="stable")]
            self._order = epoch, items, generator.permutation(self.batches_per_epoch)
        _, items, batches = self._order
        chosen = items[self._cuts[batches[place]] : self._cuts[batches[place] + 1]]
        return tuple(pad([side[item] for item in chosen], self.padding) for side in self.sides)


def in_order_of_length(
    sides: Sequence[Sequences], tokens: int, padding: int
) -> list[tuple[Int64[Tensor, "batch _"], ...]]:
    """Cut all items into batches from the shortest to the longest, for evaluation; arguments as in `Buckets`.

    Raises:
        ValueError: as `Buckets`.
    """
    longest = _longest(sides, tokens, padding)
    items = np.argsort(longest, kind="stable")
    cuts = _cuts(longest[items], tokens)
    return [
        tuple(pad([side[item] for item in items[start:stop]], padding) for side in sides)
        for start, stop in pairwise(cuts)
    ]


def pad(sequences: Sequences, padding: int) -> Int64[Tensor, "batch longest"]:
    """Put sequences into the rows of a tensor as wide as the longest, and fill them up on the right."""
    padded = torch.full((len(sequences), max(map(len, sequences), default=0)), padding)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence)
    return padded


def _longest(sides: Sequence[Sequences], tokens: int, padding: int) -> np.ndarray:
    """Check the items; return the length of each one's longest sequence."""
    _check_at_least(1, tokens=tokens)
    counts = [len(side) for side in sides]
    if not counts or len(set(counts)) > 1 or counts[0] == 0:
        raise ValueError(f"the sides have {counts} items: there must be a side and an item, and as many in all sides")
    for number, side in enumerate(sides):
        for place, sequence in enumerate(side):
            if not 0 < len(sequence) <= tokens:
                raise ValueError(
                    f"sequence {place} of side {number} has {len(sequence)} tokens: it must have 1 to {tokens}, "
                    "the tokens of a batch"
                )
            if padding in sequence:
                raise ValueError(f"sequence {place} of side {number} has the padding token {padding} in it")
    return np.array([max(map(len, item)) for item in zip(*sides, strict=True)])


def _cuts(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Say where sorted lengths are cut so that rows × the longest, which is the last, stay within the tokens."""
    cuts = [0]
    for place, length in enumerate(lengths):
        if (place + 1 - cuts[-1]) * length > tokens:
            cuts.append(place)
    return np.array([*cuts, len(lengths)])
