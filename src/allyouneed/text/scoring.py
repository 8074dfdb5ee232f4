"""How likely a model holds given continuations, with what many of them have in common computed once."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .generation import LanguageModel, evaluating

# Tokens that a model is given at a time, and keys that all rows together look at: what a branched cache joins anew in
# each layer stays small.
_TOKENS_AT_A_TIME, _KEYS_AT_A_TIME = 1024, 32_768


def score_tokens(
    model: LanguageModel,
    prefix: Sequence[int],
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Sum the log-likelihoods, in nats, of each question's options after the prefix and the question.

    The prefix is computed once, a question once for all of its options, and of the options what follows the first
    token, whose likelihood the question gives already. No padding stands before anything that is scored. The same call
    gives the same scores; with other questions beside it a score differs by rounding.

    Args:
        model: a causal language model whose cache can be branched, such as `nn.Decoder`.
        prefix: what all questions share; may be empty.
        questions: tokens of each, at least one.
        options: tokens of each option of each question, at least one.
    """
    device = device_of(model)
    found: list[list[float]] = [[] for _ in questions]
    with torch.inference_mode(), evaluating(model):
        trunk = prefix_cache(model, prefix)
        order = sorted(range(len(questions)), key=lambda place: len(questions[place]))
        for group in in_parts(order, [len(questions[place]) for place in order], len(prefix)):
            cache = trunk.branch([0] * len(group))
            # Padding on the right is seen by nothing that comes before it.
            tokens, _ = _padded([questions[place] for place in group], device)
            ends = torch.tensor([len(questions[place]) for place in group], device=device)
            first = _widened(_logits_at(model, tokens, ends - 1, cache)).log_softmax(-1)
            for row, place in enumerate(group):
                found[place] = [float(first[row, option[0]]) for option in options[place]]
            for length, rows in groupby(range(len(group)), key=lambda row: len(questions[group[row]])):
                longer = [
                    (row, group[row], choice)
                    for row in rows
                    for choice, option in enumerate(options[group[row]])
                    if len(option) > 1
                ]
                rest = [options[place][choice] for _, place, choice in longer]
                scores = _rest_scored(model, cache, len(prefix) + length, [row for row, _, _ in longer], rest)
                for (_, place, choice), score in zip(longer, scores, strict=True):
                    found[place][choice] += score
    return found


def device_of(model: LanguageModel) -> torch.device:
    """Give the device of a model's weights."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def prefix_cache(model: LanguageModel, prefix: Sequence[int]) -> Any:
    """Compute what many prompts begin with, once; the cache that holds it is to be branched."""
    cache = model.new_cache(capacity=max(1, len(prefix)))
    if prefix:
        with torch.inference_mode(), evaluating(model):
            tokens = torch.tensor([list(prefix)], device=device_of(model))
            _logits_at(model, tokens, torch.tensor([len(prefix) - 1], device=tokens.device), cache)
    return cache


def in_parts(places: Sequence[int], lengths: Sequence[int], earlier: int) -> Iterator[list[int]]:
    """Cut places, the short ones first, so that no part has many tokens or looks at many keys.

    Args:
        places: to be cut.
        lengths: tokens at each place, each at least as many as at the one before.
        earlier: tokens that stand before those of every place.
    """
    part: list[int] = []
    for place, length in zip(places, lengths, strict=True):
        rows = len(part) + 1
        if part and (rows * length > _TOKENS_AT_A_TIME or rows * (earlier + length) > _KEYS_AT_A_TIME):
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def _rest_scored(
    model: LanguageModel, cache: Any, earlier: int, rows: Sequence[int], options: Sequence[Sequence[int]]
) -> list[float]:
    """Sum the log-likelihoods of all but the first token of each option, after so many tokens of the row it is for."""
    scores = [0.0] * len(options)
    order = sorted(range(len(options)), key=lambda place: len(options[place]))
    for part in in_parts(order, [len(options[place]) - 1 for place in order], earlier):
        tokens, counted = _padded([options[place] for place in part], device_of(model))
        # Rows that are padded to the length of others are cut to what is theirs, and gone on with.
        branches = cache.branch([rows[place] for place in part])
        branches.truncate(earlier)
        logits = _widened(model(tokens[:, :-1], cache=branches))
        chosen = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        sums = chosen.where(counted[:, 1:], 0.0).sum(-1).tolist()
        for place, score in zip(part, sums, strict=True):
            scores[place] = score
    return scores


def _padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Put rows of tokens into one tensor, padded on the right, and say what is no padding."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    present = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, content in enumerate(rows):
        tokens[row, : len(content)] = torch.tensor(list(content))
        present[row, : len(content)] = True
    return tokens.to(device), present.to(device)


def _logits_at(
    model: Any, tokens: Int[Tensor, "batch length"], places: Int[Tensor, " batch"], cache: Any
) -> Float[Tensor, "batch vocabulary"]:
    """Give the logits of what follows one place of each row, and of no other place where the model can do that."""
    rows = torch.arange(len(tokens), device=tokens.device)
    if hasattr(model, "hidden") and hasattr(model, "logits"):
        return model.logits(model.hidden(tokens, cache=cache)[rows, places])
    return model(tokens, cache=cache)[rows, places]


def _widened(logits: Tensor) -> Tensor:
    """Give logits in 32 bits where they have fewer, for sums over a vocabulary are beyond 16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
