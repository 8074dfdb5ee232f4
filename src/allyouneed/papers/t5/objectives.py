"""Unsupervised objectives: how a row of tokens becomes an input and a target (section 3.3, Table 3)."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Pair(NamedTuple):
    """What a model is given, and what it is to write.

    Attributes:
        source: tokens of the input.
        target: tokens of the output.
    """

    source: list[int]
    target: list[int]


Objective = Callable[[Sequence[int], np.random.Generator], Pair]
"""Makes a pair of a row; all randomness is the generator's."""


def iid_noise(length: int, generator: np.random.Generator, *, rate: float = 0.15) -> Bool[np.ndarray, " length"]:
    """Choose each token with the same probability, independently of the others (section 3.1.4).

    Raises:
        ValueError: a length below 1, or a rate that is not between 0 and 1.
    """
    _check_noise(length, rate)
    return generator.random(length) < rate


def span_noise(
    length: int, generator: np.random.Generator, *, rate: float = 0.15, mean_span: float = 3.0
) -> Bool[np.ndarray, " length"]:
    """Choose a fixed share of the tokens, in a fixed number of spans of random lengths (section 3.3.4).

    Of 500 tokens with a rate of 15 % and a mean span of 3, 75 are chosen in 25 spans. All ways to cut the chosen tokens
    into so many spans are equally likely, and so are all ways to place them with at least a token between any two. At
    least one token is chosen and one is not, and a span is a token or more, so that in short rows share and mean are
    those nearest.

    Raises:
        ValueError: a length below 2, a rate that is not between 0 and 1, or a mean below 1.
    """
    _check_noise(length, rate)
    if length < 2:
        raise ValueError("a row of 1 token cannot have a part hidden and a part left: it must have at least 2")
    if not 1 <= mean_span < math.inf:
        raise ValueError(f"mean_span {mean_span} is out of range: it must be at least 1")
    chosen = min(max(round(length * rate), 1), length - 1)
    spans = min(max(round(chosen / mean_span), 1), chosen, length - chosen + 1)
    widths = _parts(chosen, spans, generator)
    # Gaps at both ends may be empty: each is drawn with a token more, which is then taken away.
    gaps = _parts(length - chosen + 2, spans + 1, generator)
    gaps[0] -= 1
    gaps[-1] -= 1
    noise = np.zeros(length, bool)
    place = 0
    for gap, width in zip(gaps, widths, strict=False):
        noise[place + gap : place + gap + width] = True
        place += gap + width
    return noise


def replace_spans(tokens: Sequence[int], noise: Bool[np.ndarray, " length"], *, sentinels: Sequence[int]) -> Pair:
    """Put a sentinel in the place of each run of chosen tokens; the target lists what each stands for, and a last one.

    Source: Figure 2, and "replace spans" in Table 3: the paper's baseline, and with `span_noise` its final choice.

    Args:
        tokens: the row.
        noise: True where a token is to be hidden.
        sentinels: one more than there are runs, in order; none is in the row.

    Raises:
        ValueError: too few sentinels, one of them in the row, an empty row, or noise of another length.
    """
    _check_row(tokens, noise)
    known = set(sentinels)
    if not known.isdisjoint(tokens):
        raise ValueError(f"the row has the sentinel {next(token for token in tokens if token in known)} in it already")
    runs = int(noise[0]) + int((noise[1:] & ~noise[:-1]).sum())
    if runs + 1 > len(sentinels):
        raise ValueError(
            f"{len(sentinels)} sentinels are too few for {runs} hidden spans, which need {runs + 1}, one to end the "
            "target: shorten the row, hide less, or train a vocabulary with more of them"
        )
    source: list[int] = []
    target: list[int] = []
    used = 0
    for place, (token, hidden) in enumerate(zip(tokens, noise.tolist(), strict=True)):
        if not hidden:
            source.append(token)
            continue
        if place == 0 or not noise[place - 1]:
            source.append(sentinels[used])
            target.append(sentinels[used])
            used += 1
        target.append(token)
    return Pair(source, [*target, sentinels[used]])


def restore_spans(pair: Pair, *, sentinels: Sequence[int]) -> list[int]:
    """Rebuild the row from which `replace_spans` made a pair.

    Raises:
        ValueError: a pair that it cannot have made: sentinels that are missing, doubled or out of order.
    """
    known = set(sentinels)
    spans: list[list[int]] = []
    listed: list[int] = []
    for token in pair.target:
        if token in known:
            listed.append(token)
            spans.append([])
        elif not spans:
            raise ValueError(f"the target begins with {token}, which is no sentinel")
        else:
            spans[-1].append(token)
    asked = [token for token in pair.source if token in known]
    if listed != list(sentinels[: len(listed)]) or asked != listed[:-1] or not listed or spans[-1]:
        raise ValueError(
            f"the source has the sentinels {asked} and the target {listed}: the target must list those of the source "
            f"in the order {list(sentinels[: len(asked) + 1])}, and end with the last of these"
        )
    contents = dict(zip(listed, spans, strict=True))
    return [token for one in pair.source for token in contents.get(one, [one])]


def drop_tokens(tokens: Sequence[int], noise: Bool[np.ndarray, " length"]) -> Pair:
    """Leave the chosen tokens out of the input; they alone are the target, in order ("drop tokens" in Table 3).

    Raises:
        ValueError: an empty row, or noise of another length.
    """
    _check_row(tokens, noise)
    return Pair(
        [token for token, hidden in zip(tokens, noise, strict=True) if not hidden],
        [token for token, hidden in zip(tokens, noise, strict=True) if hidden],
    )


def mass_style(tokens: Sequence[int], noise: Bool[np.ndarray, " length"], *, mask: int) -> Pair:
    """Put a mask in the place of each chosen token; the target is the whole row (MASS-style, section 3.3.2).

    Raises:
        ValueError: an empty row, or noise of another length.
    """
    _check_row(tokens, noise)
    return Pair([mask if hidden else token for token, hidden in zip(tokens, noise, strict=True)], list(tokens))


def bert_style(
    tokens: Sequence[int],
    noise: Bool[np.ndarray, " length"],
    generator: np.random.Generator,
    *,
    mask: int,
    ordinary: Sequence[int] | range,
    random: float = 0.1,
) -> Pair:
    """Put a mask or, now and then, a random token in the place of each chosen one; the target is the whole row.

    Source: section 3.3.1, after BERT, but that no chosen token stays as it is.

    Args:
        tokens: the row.
        noise: True where a token is to be replaced.
        generator: draws which are replaced by what.
        mask: the token that hides.
        ordinary: the tokens among which a random one is drawn.
        random: the share of chosen tokens that become a random one.

    Raises:
        ValueError: a share below 0 or above 1, no ordinary tokens, an empty row, or noise of another length.
    """
    _check_row(tokens, noise)
    if not 0 <= random <= 1 or not len(ordinary):
        raise ValueError(f"random {random} of {len(ordinary)} tokens: the share must be 0 to 1, of at least one token")
    source = mass_style(tokens, noise, mask=mask).source
    swapped = noise & (generator.random(len(tokens)) < random)
    drawn = generator.integers(len(ordinary), size=len(tokens))
    return Pair(
        [ordinary[pick] if swap else token for token, swap, pick in zip(source, swapped, drawn.tolist(), strict=True)],
        list(tokens),
    )


def deshuffle(tokens: Sequence[int], generator: np.random.Generator) -> Pair:
    """Shuffle the input; the target is the row as it was (section 3.3.1).

    Raises:
        ValueError: an empty row.
    """
    _check_row(tokens)
    return Pair([tokens[place] for place in generator.permutation(len(tokens))], list(tokens))


def prefix_language_model(tokens: Sequence[int], generator: np.random.Generator) -> Pair:
    """Split the row at a random place: the first part is the input, the rest the target (section 3.2.3).

    Raises:
        ValueError: a row of fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"a row of {len(tokens)} tokens cannot be split in two: it must have at least 2")
    place = int(generator.integers(1, len(tokens)))
    return Pair(list(tokens[:place]), list(tokens[place:]))


def finished(pairs: Iterable[Pair], *, begin: int, end: int) -> tuple[list[list[int]], list[list[int]]]:
    """Give sources, each with the token that ends it, and targets, with those that begin and end them."""
    sources, targets = [], []
    for source, target in pairs:
        sources.append([*source, end])
        targets.append([begin, *target, end])
    return sources, targets


def _parts(total: int, parts: int, generator: np.random.Generator) -> list[int]:
    """Cut a number into parts of at least 1, all ways equally likely."""
    cuts = np.sort(generator.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total).tolist()


def _check_noise(length: int, rate: float) -> None:
    if length < 1:
        raise ValueError(f"a row of {length} tokens is empty: there is nothing to hide")
    if not 0 < rate < 1:
        raise ValueError(f"corruption rate {rate} is out of range: it must be above 0 and below 1")


def _check_row(tokens: Sequence[int], noise: Bool[np.ndarray, " length"] | None = None) -> None:
    if len(tokens) == 0:
        raise ValueError("the row is empty: there is nothing to learn from it")
    if noise is not None and noise.shape != (len(tokens),):
        raise ValueError(f"noise of shape {noise.shape} is not for a row of {len(tokens)} tokens")
