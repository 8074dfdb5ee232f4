"""Batches of labelled examples of about one length, so that little of them is padding."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .inputs import PADDING, Examples

GROUPED = 16
"""Batches among whose examples those of about one length are put together."""


def lengths(tokens: Int[Tensor, "examples rows length"]) -> Int[Tensor, " examples"]:
    """Give the tokens of each example's longest row; the padding token may stand inside a row, for unknown words."""
    places = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
    return ((tokens != PADDING) * places).amax((-1, -2))


def trimmed(tokens: Int[Tensor, "examples rows length"]) -> Int[Tensor, "examples rows longest"]:
    """Cut off what is padding in every row."""
    return tokens[..., : int(lengths(tokens).max())]


class OfOneLength:
    """Batches of examples of about one length, as a pure function of the step.

    An epoch's order is drawn; of every few batches' examples those of about one length are put together, and the
    batches are shuffled. What fills no batch at the end of an epoch is left out of it.

    Args:
        examples: labelled; at least a batch.
        batch: examples of a batch.
        seed: of all orders.
    """

    def __init__(self, examples: Examples, batch: int, seed: int):
        self.examples, self.batch, self.seed = examples, batch, seed
        self.batches_per_epoch = len(examples.labels) // batch
        self._lengths = lengths(examples.tokens).numpy()
        self._order: tuple[int, list[np.ndarray]] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Give the tokens and labels of a step."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            draw = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
            self._order = epoch, self._batches(draw)
        chosen = torch.from_numpy(self._order[1][place])
        return self.examples.tokens[chosen], self.examples.labels[chosen]

    def _batches(self, draw: np.random.Generator) -> list[np.ndarray]:
        order = draw.permutation(len(self._lengths))[: self.batches_per_epoch * self.batch]
        batches: list[np.ndarray] = []
        for start in range(0, len(order), GROUPED * self.batch):
            some = order[start : start + GROUPED * self.batch]
            some = some[self._lengths[some].argsort(kind="stable")]
            batches += np.split(some, range(self.batch, len(some), self.batch))
        return [batches[place] for place in draw.permutation(len(batches))]


def in_order_of_length(examples: Examples, batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut examples into batches, those of about one length together."""
    order = lengths(examples.tokens).argsort(stable=True)
    for chosen in order.split(batch):
        yield examples.tokens[chosen], examples.labels[chosen]
