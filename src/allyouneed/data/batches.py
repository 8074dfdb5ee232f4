"""Batches as pure functions of the step: a training that resumes at a step needs no loader's state.

`RandomWindows` and `Shuffled` are called with a step, counted from 0, and give that step's batch, whatever was asked
before. All randomness comes from their seed and the step. Import this module by its name; it imports torch.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

Items = TypeVar("Items", Tensor, Sequence[Tensor])


class RandomWindows:
    """Windows of a long text, each begun at a token drawn uniformly, with replacement.

    Args:
        tokens: the text, in any integer type: bytes may stay bytes.
        length: tokens that a model is given. A window has one more, since each token's target is the next.
        batch: windows in a batch.
        seed: of all draws; 0 or more.

    Raises:
        ValueError: a text shorter than one window, a batch larger than the number of windows, a length, batch or seed
            out of range.
    """

    def __init__(self, tokens: Integer[Tensor, " tokens"], length: int, batch: int, seed: int):
        windows = _check_text(tokens, length, batch)
        if batch > windows:
            raise ValueError(
                f"a batch of {batch} is larger than the data: "
                f"{len(tokens)} tokens have {windows} windows of {length + 1}"
            )
        _check_at_least(0, seed=seed)
        self.tokens = tokens
        self.length = length
        self.batch = batch
        self.seed = seed

    def __call__(self, step: int) -> Int64[Tensor, "batch window"]:
        """Give the windows of a step; inputs are all but the last token of each, targets all but the first."""
        starts = _generator(self.seed, step).integers(len(self.tokens) - self.length, size=(self.batch, 1))
        places = torch.from_numpy(starts + np.arange(self.length + 1))
        return self.tokens[places.to(self.tokens.device)].long()


class Shuffled(Generic[Items]):
    """Batches of items in an order that is shuffled anew each epoch; an epoch's last, incomplete batch is dropped.

    Args:
        items: a tensor, or several of which the same index is one item (images and their labels).
        batch: items in a batch.
        seed: of all permutations; 0 or more.

    Raises:
        ValueError: no items, tensors of different numbers of items, a batch larger than the data, a batch or seed out
            of range.
    """

    def __init__(self, items: Items, batch: int, seed: int):
        tensors = (items,) if isinstance(items, Tensor) else tuple(items)
        if not tensors or any(tensor.ndim == 0 for tensor in tensors):
            raise ValueError(f"there are no items in {len(tensors)} tensors: each must have items along its first axis")
        counts = [len(tensor) for tensor in tensors]
        if len(set(counts)) > 1:
            raise ValueError(f"the tensors have {counts} items: all must have the same number")
        _check_at_least(1, batch=batch)
        _check_at_least(0, seed=seed)
        if batch > counts[0]:
            raise ValueError(f"a batch of {batch} is larger than the data: there are {counts[0]} items")
        self.items: Items = items
        self.batch = batch
        self.seed = seed
        self.batches_per_epoch = counts[0] // batch
        self._count = counts[0]
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, step: int) -> Items:
        """Give the items of a step: a tensor for a tensor, a tuple for several, in their own types."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            # Kept because the next step most likely falls into the same epoch.
            self._order = epoch, torch.from_numpy(_generator(self.seed, epoch).permutation(self._count))
        chosen = self._order[1][place * self.batch : (place + 1) * self.batch]
        if isinstance(self.items, Tensor):
            return self.items[chosen.to(self.items.device)]
        return tuple(tensor[chosen.to(tensor.device)] for tensor in self.items)


def consecutive_windows(
    tokens: Integer[Tensor, " tokens"], length: int, batch: int, limit: int | None = None
) -> list[Int64[Tensor, "_ window"]]:
    """Cut a text into windows in which each token but the first is a target once, for evaluation.

    Windows have length + 1 tokens and overlap by one. What fills no window at the end is dropped, so that different
    lengths would score different texts; with a `limit` that is a multiple of all of them they score the same targets.

    Args:
        tokens: the text, in any integer type.
        length: tokens that a model is given.
        batch: windows in a batch; the last batch may have fewer.
        limit: score only the first so many targets; as many as fill windows where None.

    Raises:
        ValueError: a text shorter than one window, a length or batch below 1, a limit that is not a multiple of the
            length or exceeds the text.
    """
    _check_text(tokens, length, batch)
    targets = len(tokens) - 1
    if limit is None:
        limit = targets - targets % length
    elif limit < 1 or limit % length or limit > targets:
        raise ValueError(
            f"the first {limit} targets cannot be scored in windows of {length}: the limit must be a multiple of "
            f"{length} from {length} to {targets - targets % length}, for there are {targets} targets"
        )
    windows = tokens[: limit + 1].unfold(0, length + 1, length)
    return [some.long() for some in windows.split(batch)]


def _check_text(tokens: Tensor, length: int, batch: int) -> int:
    """Return the number of windows that may be drawn."""
    _check_at_least(1, length=length, batch=batch)
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} and type {tokens.dtype} are no text: it must be one row of integers"
        )
    if len(tokens) == 0:
        raise ValueError("the text is empty: it has 0 tokens")
    if len(tokens) < length + 1:
        raise ValueError(
            f"the text has {len(tokens)} tokens, too few for one window of {length + 1} (length {length} and a target)"
        )
    return len(tokens) - length


def _check_at_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} {number} is out of range: it must be at least {least}")


def _generator(seed: int, turn: int) -> np.random.Generator:
    _check_at_least(0, step=turn)
    # The spawn key keeps streams apart for any two pairs of numbers; their sum or concatenation would not.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(turn,)))
