"""What a language model does without fine-tuning: it prefers what it finds likelier (section 5, figure 2 right)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from allyouneed.data.buckets import pad

from .inputs import PADDING, Examples, Special

LanguageModelLogits = Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length vocabulary"]]
"""Gives the logits of the token that follows each token."""


def pairs(scored: Examples, special: Special) -> list[tuple[list[int], list[int]]]:
    """Give the rows of choices between two without the added tokens, of each the right one first."""
    found: list[tuple[list[int], list[int]]] = []
    for rows, label in zip(scored.tokens.tolist(), scored.labels.tolist(), strict=True):
        one, other = (row[1 : row.index(special.extract)] for row in rows)
        found.append((other, one) if label else (one, other))
    return found


@torch.no_grad()
def preferred(model: LanguageModelLogits, asked: Sequence[tuple[list[int], list[int]]], batch: int = 64) -> float:
    """Give the share of pairs of which the model finds the first likelier by the mean logarithm over its tokens."""
    right = 0
    for start in range(0, len(asked), batch):
        some = asked[start : start + batch]
        first, second = (likelihoods(model, [pair[place] for pair in some]) for place in range(2))
        right += int((first > second).sum())
    return right / len(asked)


def likelihoods(model: LanguageModelLogits, rows: Sequence[Sequence[int]]) -> Float[Tensor, " rows"]:
    """Give each row's mean logarithm of the probability of its tokens behind the first, in nats."""
    tokens = pad(rows, PADDING).long()
    sizes = torch.tensor([len(row) for row in rows])
    logits = model(tokens[:, :-1]).float()
    each = -F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(rows), -1)
    present = torch.arange(1, tokens.shape[1]) < sizes[:, None]
    return (each * present).sum(-1) / (sizes - 1)
