"""Mixing tasks: how often each is drawn (section 3.5.2), and batches of what is drawn."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from allyouneed.data.buckets import pad

from .objectives import Pair, finished

Draw = Callable[[np.random.Generator], Pair]
"""Draws an example of a task."""


def mixing_rates(sizes: Mapping[str, float], *, limit: float = math.inf, temperature: float = 1.0) -> dict[str, float]:
    """Give the probability with which each task is drawn: r ∝ min(e, K)^(1/T), for e examples.

    With T of 1 tasks are drawn in proportion to their examples; as T grows, ever more alike, and with an infinite T
    each as often as any other ("equal mixing").

    Source: section 3.5.2.

    Args:
        sizes: examples of each task, e.
        limit: K, beyond which a task's size is not counted; it keeps unlabelled text from crowding out all else.
        temperature: T.

    Raises:
        ValueError: no tasks, one without examples, or a limit or temperature that is not above 0.
    """
    if not sizes:
        raise ValueError("there are no tasks to mix")
    empty = [name for name, size in sizes.items() if not size > 0]
    if empty:
        raise ValueError(f"{', '.join(empty)} has no examples: leave it out of the mixture")
    for name, number in (("limit", limit), ("temperature", temperature)):
        if not number > 0:
            raise ValueError(f"{name} {number} is out of range: it must be above 0")
    counted = {name: min(size, limit) for name, size in sizes.items()}
    if math.inf in counted.values():
        raise ValueError(f"{max(counted, key=lambda name: counted[name])} has no end: a mixture with it needs a limit")
    whole = sum(counted.values())
    scaled = {name: (size / whole) ** (1.0 / temperature) for name, size in counted.items()}
    total = sum(scaled.values())
    return {name: rate / total for name, rate in scaled.items()}


def one_of(pairs: Sequence[Pair]) -> Draw:
    """Draw from a task's examples, each as often as any other.

    Raises:
        ValueError: there are none.
    """
    if not pairs:
        raise ValueError("a task without examples has none to draw")
    return lambda generator: pairs[int(generator.integers(len(pairs)))]


class Mixture:
    """Batches in which each example is of a task drawn by its rate.

    Called with a step, counted from 0, it gives that step's batch, whatever was asked before: sources and targets,
    padded on the right.

    Args:
        tasks: draw an example of each task.
        rates: the probability of each; all others are not drawn.
        batch: examples in a batch.
        begin: the token that begins each target, and fills up rows.
        end: the token that ends sources and targets.
        seed: of all draws; 0 or more.

    Raises:
        ValueError: a rate of an unknown task, rates that do not add up to 1, or a batch or seed out of range.
    """

    def __init__(
        self, tasks: Mapping[str, Draw], rates: Mapping[str, float], *, batch: int, begin: int, end: int, seed: int
    ):
        unknown = sorted(set(rates) - set(tasks))
        if unknown:
            raise ValueError(f"there are rates for {', '.join(unknown)}, but only the tasks {', '.join(tasks)}")
        if any(rate < 0 for rate in rates.values()) or not math.isclose(sum(rates.values()), 1.0, rel_tol=1e-6):
            raise ValueError(f"rates {dict(rates)} must be 0 or more and add up to 1: see `mixing_rates`")
        for name, number, least in (("batch", batch, 1), ("seed", seed, 0)):
            if number < least:
                raise ValueError(f"{name} {number} is out of range: it must be at least {least}")
        self.draws = [tasks[name] for name in rates]
        self.bounds = np.cumsum(list(rates.values()))
        self.batch, self.begin, self.end, self.seed = batch, begin, end, seed

    def pairs(self, step: int) -> list[Pair]:
        """Draw the examples of a step."""
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))
        # The last bound may be a little below 1 by rounding.
        places = np.minimum(np.searchsorted(self.bounds, generator.random(self.batch), "right"), len(self.draws) - 1)
        return [self.draws[place](generator) for place in places]

    def __call__(self, step: int) -> tuple[Int64[Tensor, "batch _"], Int64[Tensor, "batch _"]]:
        """Give the sources and targets of a step."""
        sources, targets = finished(self.pairs(step), begin=self.begin, end=self.end)
        return pad(sources, self.begin), pad(targets, self.begin)
