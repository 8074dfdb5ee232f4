"""Trivial baselines, which every task is to show: the commonest label, a bag of words, and a bigram model."""

from collections import Counter

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inputs import Examples, Special

BIGRAM_WEIGHT = 0.7
"""Of the bigrams' relative frequency; the rest is the tokens' own, one added to each."""


def majority(examples: Examples) -> float:
    """Give the share of the commonest label."""
    return max(Counter(examples.labels.tolist()).values()) / len(examples.labels)


def bag_of_words(train: Examples, scored: Examples, vocabulary: int) -> float:
    """Give the accuracy of naive Bayes on the tokens that rows hold, in whatever order.

    Each option to choose from is judged by itself as right or wrong.
    """
    right = torch.arange(train.tokens.shape[1]) == train.labels[:, None]
    member = torch.nn.functional.one_hot(right.long().flatten(), 2).double()
    counts = member.T @ _bags(train.tokens, vocabulary).flatten(0, 1) + 1
    log_likelihoods = (counts / counts.sum(-1, keepdim=True)).log()
    scores = _bags(scored.tokens, vocabulary) @ log_likelihoods.T
    chosen = (scores[..., 1] - scores[..., 0]).argmax(-1)
    return float((chosen == scored.labels).double().mean())


def _bags(tokens: Int[Tensor, "examples rows length"], vocabulary: int) -> Float[Tensor, "examples rows vocabulary"]:
    """Say which tokens stand in each row; padding, which is also what unknown words are, and added tokens are none."""
    bags = torch.zeros(*tokens.shape[:2], vocabulary + len(Special._fields), dtype=torch.double)
    bags.scatter_(-1, tokens.long(), 1.0)
    bags[..., 0] = 0
    return bags[..., :vocabulary]


class Bigrams:
    """A bigram model of a text, which scores rows as a language model does.

    Args:
        tokens: the text.
        vocabulary: number of tokens.
    """

    def __init__(self, tokens: Int[Tensor, " tokens"], vocabulary: int):
        text = tokens.numpy().astype(np.int64)
        pairs = np.bincount(text[:-1] * vocabulary + text[1:], minlength=vocabulary**2).reshape(vocabulary, vocabulary)
        single = np.bincount(text, minlength=vocabulary) + 1.0
        after = pairs.sum(1, keepdims=True)
        own = single / single.sum()
        self.log_probabilities = torch.from_numpy(
            np.log(BIGRAM_WEIGHT * pairs / np.maximum(after, 1) + (1 - BIGRAM_WEIGHT) * own)
        )

    def __call__(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each token."""
        return self.log_probabilities[tokens.long()]
