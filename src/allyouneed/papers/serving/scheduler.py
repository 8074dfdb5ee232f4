"""Who is computed in the next pass: scheduling by iteration (Orca), chunked prompts (SARATHI), preemption (vLLM).

Again without tensors: a scheduler decides, takes blocks, and counts.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .blocks import BlockPool, BlockTable
from .requests import QueueFullError, RefusedError, Request


@dataclass(eq=False)
class Running:
    """One text of a request, from the time it waits.

    Attributes:
        request: what was asked.
        choice: which of its texts this is.
        arrived: the request's place in the order of arrival.
        tokens: the prompt, and what was written after it.
        table: where keys and values lie.
        stands_for_all: whether the other choices are still to be forked from this one, once the prompt is computed.
    """

    request: Request
    choice: int
    arrived: int
    tokens: list[int]
    table: BlockTable
    stands_for_all: bool = False

    @property
    def written(self) -> int:
        """How many tokens were added to the prompt."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def left(self) -> int:
        """How many tokens may still be added."""
        return self.request.new_tokens - self.written

    @property
    def to_come(self) -> int:
        """How many tokens may still be computed for it; the last that is written never is."""
        return len(self.request.prompt) + self.request.new_tokens - 1 - self.table.length

    @property
    def to_prefill(self) -> int:
        """How many tokens are to be computed in pieces before the text is written, or goes on.

        Without the last one where any was written: a text that lost its blocks then goes on as if it had not.
        """
        return len(self.tokens) - (1 if self.written else 0) - self.table.length


@dataclass(frozen=True)
class Work:
    """What a pass does for one text.

    Attributes:
        text: whose tokens they are.
        tokens: to be computed, proposals last.
        proposed: how many of them are proposals.
        wanted: how many of the last ones' logits are wanted.
        taken: blocks that were taken for them.
        copies: blocks to be copied before, from and to.
    """

    text: Running
    tokens: Sequence[int]
    proposed: int
    wanted: int
    taken: Sequence[int]
    copies: Sequence[tuple[int, int]]


Propose = Callable[[Running, int], Sequence[int]]
"""Gives tokens that may follow a text, no more than a number."""


@dataclass(frozen=True)
class Limits:
    """How much is done at a time.

    Attributes:
        texts: how many are written at once.
        tokens: of a pass; what texts that are being written leave of it is for prompts.
        waiting: how many requests may wait before further ones are refused.
        proposals: the most tokens that are proposed for a text in a pass.

    Raises:
        ValueError: numbers out of range, or passes with no room for prompts.
    """

    texts: int = 16
    tokens: int = 64
    waiting: int = 256
    proposals: int = 0

    def __post_init__(self) -> None:
        for name, least in (("texts", 1), ("tokens", 1), ("waiting", 1), ("proposals", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: it must be at least {least}")
        if self.tokens <= self.texts * (1 + self.proposals):
            raise ValueError(
                f"a pass of {self.tokens} tokens has no room for a prompt beside {self.texts} texts with "
                f"{self.proposals} proposals each: it must have more than {self.texts * (1 + self.proposals)}"
            )


class Scheduler:
    """Decides anew before each pass who is in it.

    Every text that is being written gets its next token; what is left of a pass is filled with pieces of prompts, and
    who has waited longest is let in as soon as there is room. Where blocks run out, the text that came last gives up
    its own and waits, in front: it is computed again later, as far as its blocks are not found again.

    Args:
        pool: owns the blocks.
        limits: how much is done at a time.
        propose: gives proposals; none where None.

    Attributes:
        waiting: who is not in yet, in the order of arrival.
        running: who is.
        preempted: how often a text gave up its blocks.
        found: how many tokens were not computed, because their blocks were found.
    """

    def __init__(self, pool: BlockPool, limits: Limits, propose: Propose | None = None):
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.preempted = 0
        self.found = 0
        self._propose = propose
        self._arrivals = itertools.count()

    def __iter__(self) -> Iterator[Running]:
        """Go through all texts, running or waiting."""
        return iter([*self.running, *self.waiting])

    def __len__(self) -> int:
        """Count all texts."""
        return len(self.running) + len(self.waiting)

    def add(self, request: Request) -> Running:
        """Let a request wait.

        Raises:
            RefusedError: it would never fit.
            QueueFullError: too many wait.
        """
        room = self.pool.blocks * self.pool.size
        # The last token is never fed.
        if len(request.prompt) + request.new_tokens - 1 > room:
            raise RefusedError(
                f"{len(request.prompt)} tokens of prompt and {request.new_tokens} new ones do not fit into a cache "
                f"of {room} tokens"
            )
        if request.choices > self.limits.texts:
            raise RefusedError(
                f"{request.choices} choices are more than the {self.limits.texts} texts that are written at once"
            )
        if sum(text.stands_for_all for text in self.waiting) >= self.limits.waiting:
            raise QueueFullError(f"{self.limits.waiting} requests wait already: try again later")
        text = Running(request, 0, next(self._arrivals), list(request.prompt), BlockTable(self.pool), True)
        self.waiting.append(text)
        return text

    def remove(self, text: Running) -> None:
        """Forget a text and give its blocks back; one that is not here is forgotten already."""
        text.table.release()
        for texts in (self.running, self.waiting):
            if text in texts:
                texts.remove(text)

    def fork(self, text: Running) -> list[Running]:
        """Begin the other choices of a text whose prompt is computed, from the same blocks."""
        text.stands_for_all = False
        others = [
            Running(text.request, choice, text.arrived, list(text.tokens), text.table.fork())
            for choice in range(1, text.request.choices)
        ]
        self.running.extend(others)
        return others

    def step(self) -> list[Work]:
        """Decide who is in the next pass, and take the blocks for it."""
        work: list[Work] = []
        left = self.limits.tokens
        for text in sorted(self.running, key=_order):
            # One may have given up its place for another.
            if text in self.running and text.to_prefill == 0:
                left -= self._write(text, work)
        for text in sorted(self.running, key=_order):
            if left and text in self.running and text.to_prefill > 0:
                left -= self._prefill(text, left, work)
        while left and (entered := self._let_in()) is not None:
            # A text that finds all its blocks goes on in the next pass.
            if entered.to_prefill > 0:
                left -= self._prefill(entered, left, work)
        return work

    def _write(self, text: Running, work: list[Work]) -> int:
        most = min(self.limits.proposals, text.left - 1)
        proposals = list(self._propose(text, most)) if self._propose is not None and most > 0 else []
        return self._take(text, [text.tokens[-1], *proposals], len(proposals), 1 + len(proposals), work)

    def _prefill(self, text: Running, left: int, work: list[Work]) -> int:
        start, count = text.table.length, min(text.to_prefill, left)
        wanted = int(count == text.to_prefill and not text.written)
        return self._take(text, text.tokens[start : start + count], 0, wanted, work)

    def _take(self, text: Running, tokens: Sequence[int], proposed: int, wanted: int, work: list[Work]) -> int:
        """Take the blocks for a text's tokens, from those who came later where none are free."""
        while text.table.wanted(len(tokens)) > self.pool.free:
            last = max(self.running, key=_order)
            self._preempt(last, work)
            if last is text:
                return 0
        taken, copies = text.table.reserve(len(tokens))
        work.append(Work(text, tokens, proposed, wanted, taken, copies))
        return len(tokens)

    def _preempt(self, text: Running, work: list[Work]) -> None:
        self.preempted += 1
        self.running.remove(text)
        # It came after all that run, and before all that wait.
        self.waiting.appendleft(text)
        work[:] = [own for own in work if own.text is not text]
        text.table.release()

    def _let_in(self) -> Running | None:
        if not self.waiting:
            return None
        text = self.waiting[0]
        if sum(map(_places, self.running)) + _places(text) > self.limits.texts:
            return None
        found = text.table.adopt(text.tokens)
        # Room for whole prompts, and a block for each that will want another, so that who comes in does not push others
        # out at once.
        wanted = sum(own.table.wanted(own.to_prefill + 1) for own in (text, *self.running) if own.to_prefill > 0)
        wanted += sum(own.table.wanted(own.to_come) > 0 for own in self.running)
        if wanted > self.pool.free and self.running:
            text.table.release()
            return None
        self.found += found
        self.running.append(self.waiting.popleft())
        return text


class StaticScheduler(Scheduler):
    """Scheduling by request, as servers did before: a batch is kept together until its longest text is done.

    Whoever waits when a batch is done makes up the next. Texts that have ended are not computed further, and tokens are
    told as they come; both are kinder than servers of that kind were.
    """

    def step(self) -> list[Work]:
        """Decide who is in the next pass: nobody new while anybody is in it."""
        if not self.running:
            while super()._let_in() is not None:
                pass
        return super().step()

    def _let_in(self) -> None:
        return None


def _places(text: Running) -> int:
    """Count the texts that one stands for."""
    return text.request.choices if text.stands_for_all else 1


def _order(text: Running) -> tuple[int, int]:
    return text.arrived, text.choice
