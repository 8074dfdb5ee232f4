"""How WordPiece learns its vocabulary: pieces are joined as long as that makes the text more likely."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

CONTINUES = "##"
"""What a piece begins with that does not begin its word."""


def learn_pieces(counts: Mapping[str, int], vocabulary: int) -> list[str]:
    """Learn pieces from words and how often each occurs.

    Begins with the characters and joins, again and again, the two neighbouring pieces whose joining raises most the
    likelihood of the text under a model that draws each piece by itself, as often as it occurs.

    Source: Schuster & Nakajima 2012, section 3.1; the paper's Wu et al. 2016, section 4.1. Neither says how the gain is
    worked out; the formula is in `_gains`.

    Args:
        counts: how often each word occurs.
        vocabulary: number of pieces.

    Raises:
        ValueError: a vocabulary smaller than the words' characters, or larger than they have pieces for.
    """
    known = sorted(counts)
    spelled = [[word[0], *(CONTINUES + character for character in word[1:])] for word in known]
    pieces = sorted({piece for spelling in spelled for piece in spelling})
    if len(pieces) > vocabulary:
        raise ValueError(
            f"a vocabulary of {vocabulary} pieces has no room for the {len(pieces)} characters of the "
            f"texts: it must be at least {len(pieces)}"
        )
    ids = {piece: place for place, piece in enumerate(pieces)}
    rows = [[ids[piece] for piece in spelling] for spelling in spelled]
    weights = [counts[word] for word in known]
    pairs = _Pairs(rows, weights, vocabulary)
    while len(pieces) < vocabulary:
        best = pairs.best()
        if best is None:
            raise ValueError(
                f"the texts have {len(pieces)} pieces worth having, not {vocabulary}: ask for no more, or give "
                "more text"
            )
        first, second = best
        joined = pieces[first] + pieces[second].removeprefix(CONTINUES)
        # Two pairs may spell the same piece, as "t"+"##he" and "th"+"##e".
        if joined not in ids:
            ids[joined] = len(pieces)
            pieces.append(joined)
        pairs.join(first, second, ids[joined])
    return pieces


class _Pairs:
    """Words as rows of pieces, and how often each piece and each pair of neighbours occurs."""

    def __init__(self, rows: list[list[int]], weights: Sequence[int], vocabulary: int):
        self.rows, self.weights = rows, weights
        self.pieces = np.zeros(vocabulary)
        self.places: dict[tuple[int, int], int] = {}
        self.where: list[set[int]] = []
        # A gain that the next best pair most likely has.
        self.floor = np.inf
        self.first, self.second = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
        self.counts = np.zeros(1024)
        for number in range(len(rows)):
            self._count(number, 1)

    def best(self) -> tuple[int, int] | None:
        """Give the pair whose joining gains most, the first met of several; None where no pair occurs twice."""
        used = len(self.where)
        counts, first, second = self.counts[:used], self.first[:used], self.second[:used]
        total = self.pieces.sum()
        while True:
            # What a pair can gain is bounded by how often it occurs, so that rare ones need not be looked at.
            least = _least_count(self.floor, total)
            looked_at = np.flatnonzero((counts >= least) | ((first == second) & (counts >= 2)))
            gains = _gains(
                counts[looked_at],
                self.pieces[first[looked_at]],
                self.pieces[second[looked_at]],
                first[looked_at] == second[looked_at],
                total,
            )
            best = gains.max(initial=-np.inf)
            if best >= self.floor or least <= 2:
                break
            self.floor /= 2
        if not len(looked_at):
            return None
        self.floor = 0.95 * best
        place = looked_at[gains.argmax()]
        return int(first[place]), int(second[place])

    def join(self, first: int, second: int, joined: int) -> None:
        """Put one piece in the place of two, in every word."""
        for number in sorted(self.where[self.places[first, second]]):
            self._count(number, -1)
            row, new, place = self.rows[number], [], 0
            while place < len(row):
                both = row[place : place + 2] == [first, second]
                new.append(joined if both else row[place])
                place += 2 if both else 1
            self.rows[number] = new
            self._count(number, 1)

    def _count(self, number: int, sign: int) -> None:
        """Add a word's pieces and pairs to the counts, or take them away."""
        weight, row = sign * self.weights[number], self.rows[number]
        for piece in row:
            self.pieces[piece] += weight
        before = None
        for pair in pairwise(row):
            # Three alike in a row can be joined only once.
            before = None if pair == before else pair
            if before is None:
                continue
            place = self.places.get(pair)
            if place is None:
                place = self._new(pair)
            self.counts[place] += weight
            if sign > 0:
                self.where[place].add(number)
            else:
                self.where[place].discard(number)

    def _new(self, pair: tuple[int, int]) -> int:
        place = self.places[pair] = len(self.where)
        self.where.append(set())
        if place == len(self.counts):
            self.first, self.second = (np.concatenate((old, np.zeros_like(old))) for old in (self.first, self.second))
            self.counts = np.concatenate((self.counts, np.zeros_like(self.counts)))
        self.first[place], self.second[place] = pair
        return place


def _least_count(floor: float, total: float) -> int:
    """Give the count below which no pair of two different pieces can gain as much as `floor`; 2 or more.

    A pair gains most where its pieces occur nowhere else: then `_gains` is N·log N − (N−n)·log(N−n) − n·log n.
    """
    if floor == np.inf:
        return 2
    low, high = 2, max(2, int(total) // 2)
    while low < high:
        middle = (low + high) // 2
        rest = total - middle
        if total * np.log(total) - rest * np.log(rest) - middle * np.log(middle) < floor:
            low = middle + 1
        else:
            high = middle
    return low


def _gains(
    pairs: Float[np.ndarray, " pairs"],
    first: Float[np.ndarray, " pairs"],
    second: Float[np.ndarray, " pairs"],
    twins: np.ndarray,
    total: float,
) -> Float[np.ndarray, " pairs"]:
    """Work out how much joining each pair raises the log-likelihood of the text, in nats.

    The text's log-likelihood under its own frequencies is Σ c·log c − N·log N over pieces that occur c times, N in all.
    Joining a pair that occurs n times takes n from both its pieces and from N, and makes a piece that occurs n times.

    Args:
        pairs: how often each pair occurs.
        first: how often its first piece occurs.
        second: how often its second piece occurs.
        twins: whether both are the same piece.
        total: number of all pieces.
    """

    def entropy(counts: np.ndarray) -> np.ndarray:
        # 0·log 0 is 0.
        return counts * np.log(np.maximum(counts, 1e-9))

    apart = np.where(twins, entropy(first), entropy(first) + entropy(second))
    left = np.where(twins, entropy(first - 2 * pairs), entropy(first - pairs) + entropy(second - pairs))
    whole = total * np.log(total)
    return left + entropy(pairs) - apart - entropy(total - pairs) + whole
