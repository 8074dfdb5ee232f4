"""Who is computed in the next step: scheduling by iteration (Orca), chunked prompts (SARATHI), preemption (vLLM).

Again without tensors: a scheduler decides, takes blocks, and counts.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .blocks import BlockPool, BlockTable
from .requests import LogProbabilities, QueueFullError, RefusedError, Request


@dataclass(eq=False)
class SequenceState:
    """One sequence of a request, from the time it waits.

    Attributes:
        request: what was asked.
        choice: which of its sequences this is.
        arrived: the request's place in the order of arrival.
        tokens: the prompt, and what was generated after it.
        table: where keys and values lie.
        stands_for_all: whether the other choices are still to be forked from this one, once the prompt is computed.
        cached_tokens: how many tokens of the prompt were in the cache when the sequence was admitted.
        prompt_logprobs: log probabilities of the prompt's tokens from the second on, as far as they are known.
    """

    request: Request
    choice: int
    arrived: int
    tokens: list[int]
    table: BlockTable
    stands_for_all: bool = False
    cached_tokens: int = 0
    prompt_logprobs: list[LogProbabilities] = field(default_factory=list)

    @property
    def generated(self) -> int:
        """How many tokens were added to the prompt."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """How many tokens may still be added."""
        return self.request.new_tokens - self.generated

    @property
    def to_come(self) -> int:
        """How many tokens may still be computed for it; the last that is generated never is."""
        return len(self.request.prompt) + self.request.new_tokens - 1 - self.table.length

    @property
    def to_prefill(self) -> int:
        """How many tokens are to be computed in pieces before the first is generated, or the sequence goes on.

        Without the last one where any was generated: a sequence that lost its blocks then goes on as if it had not.
        """
        return len(self.tokens) - (1 if self.generated else 0) - self.table.length


@dataclass(frozen=True)
class ScheduledSequence:
    """What a step does for one sequence.

    Attributes:
        sequence: whose tokens they are.
        tokens: to be computed, draft tokens last.
        drafted: how many of them are draft tokens.
        wanted: how many of the last ones' logits are wanted.
        allocated: blocks that were allocated for them.
        copies: blocks to be copied before, from and to.
    """

    sequence: SequenceState
    tokens: Sequence[int]
    drafted: int
    wanted: int
    allocated: Sequence[int]
    copies: Sequence[tuple[int, int]]


ProposeDraft = Callable[[SequenceState, int], Sequence[int]]
"""Gives tokens that may follow a sequence, no more than a number."""


@dataclass(frozen=True)
class Limits:
    """How much is done at a time.

    Attributes:
        max_num_sequences: how many are generated at once.
        max_batched_tokens: of a step; what sequences that are decoded leave of it is for prompts.
        max_queue: how many requests may wait before further ones are refused.
        max_draft_tokens: the most draft tokens of a sequence in a step.

    Raises:
        ValueError: numbers out of range, or steps with no room for prompts.
    """

    max_num_sequences: int = 16
    max_batched_tokens: int = 64
    max_queue: int = 256
    max_draft_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("max_num_sequences", 1),
            ("max_batched_tokens", 1),
            ("max_queue", 1),
            ("max_draft_tokens", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: it must be at least {least}")
        decoded = self.max_num_sequences * (1 + self.max_draft_tokens)
        if self.max_batched_tokens <= decoded:
            raise ValueError(
                f"max_batched_tokens {self.max_batched_tokens} leaves no room for a prompt beside max_num_sequences "
                f"{self.max_num_sequences} with max_draft_tokens {self.max_draft_tokens}: it must be above {decoded}"
            )


class Scheduler:
    """Decides anew before each step who is in it.

    Every sequence whose prompt is computed gets its next token; what is left of a step is filled with chunks of
    prompts, and who has waited longest is admitted as soon as there is room. Where blocks run out, the sequence that
    came last is preempted and waits, in front: it is computed again later, as far as its blocks are not in the cache.

    Args:
        pool: owns the blocks.
        limits: how much is done at a time.
        propose: gives draft tokens; none where None.

    Attributes:
        waiting: who is not in yet, in the order of arrival.
        running: who is.
        preemptions: how often a sequence lost its blocks to another.
        cache_hit_tokens: how many tokens were not computed, because their blocks were in the cache.
    """

    def __init__(self, pool: BlockPool, limits: Limits, propose: ProposeDraft | None = None):
        self.pool = pool
        self.limits = limits
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.preemptions = 0
        self.cache_hit_tokens = 0
        self._propose = propose
        self._arrivals = itertools.count()

    def __iter__(self) -> Iterator[SequenceState]:
        """Go through all sequences, running or waiting."""
        return iter([*self.running, *self.waiting])

    def __len__(self) -> int:
        """Count all sequences."""
        return len(self.running) + len(self.waiting)

    def add(self, request: Request) -> SequenceState:
        """Let a request wait.

        Raises:
            RefusedError: it would never fit.
            QueueFullError: too many wait.
        """
        room = self.pool.blocks * self.pool.size
        # The last token is never fed.
        if len(request.prompt) + max(request.new_tokens, 1) - 1 > room:
            raise RefusedError(
                f"{len(request.prompt)} tokens of prompt and {request.new_tokens} new ones do not fit into a cache "
                f"of {room} tokens"
            )
        if request.choices > self.limits.max_num_sequences:
            raise RefusedError(
                f"{request.choices} choices are more than max_num_sequences {self.limits.max_num_sequences}"
            )
        if sum(sequence.stands_for_all for sequence in self.waiting) >= self.limits.max_queue:
            raise QueueFullError(f"{self.limits.max_queue} requests wait already: try again later")
        sequence = SequenceState(request, 0, next(self._arrivals), list(request.prompt), BlockTable(self.pool), True)
        self.waiting.append(sequence)
        return sequence

    def remove(self, sequence: SequenceState) -> None:
        """Forget a sequence and give its blocks back; one that is not here is forgotten already."""
        sequence.table.free()
        for sequences in (self.running, self.waiting):
            if sequence in sequences:
                sequences.remove(sequence)

    def fork(self, sequence: SequenceState) -> list[SequenceState]:
        """Begin the other choices of a sequence whose prompt is computed, from the same blocks."""
        sequence.stands_for_all = False
        others = [
            SequenceState(sequence.request, choice, sequence.arrived, list(sequence.tokens), sequence.table.fork())
            for choice in range(1, sequence.request.choices)
        ]
        self.running.extend(others)
        return others

    def step(self) -> list[ScheduledSequence]:
        """Decide who is in the next step, and allocate the blocks for it."""
        work: list[ScheduledSequence] = []
        budget = self.limits.max_batched_tokens
        for sequence in sorted(self.running, key=_order):
            # One may have given up its place for another.
            if sequence in self.running and sequence.to_prefill == 0:
                budget -= self._decode(sequence, work)
        for sequence in sorted(self.running, key=_order):
            if budget and sequence in self.running and sequence.to_prefill > 0:
                budget -= self._prefill(sequence, budget, work)
        while budget and (entered := self._admit()) is not None:
            # A sequence whose blocks are all in the cache goes on in the next step.
            if entered.to_prefill > 0:
                budget -= self._prefill(entered, budget, work)
        return work

    def _decode(self, sequence: SequenceState, work: list[ScheduledSequence]) -> int:
        most = min(self.limits.max_draft_tokens, sequence.remaining - 1)
        draft_tokens = list(self._propose(sequence, most)) if self._propose is not None and most > 0 else []
        return self._schedule(
            sequence, [sequence.tokens[-1], *draft_tokens], len(draft_tokens), 1 + len(draft_tokens), work
        )

    def _prefill(self, sequence: SequenceState, budget: int, work: list[ScheduledSequence]) -> int:
        start, count = sequence.table.length, min(sequence.to_prefill, budget)
        wanted = int(count == sequence.to_prefill and not sequence.generated)
        if sequence.request.prompt_logprobs is not None and not sequence.generated:
            wanted = count
        return self._schedule(sequence, sequence.tokens[start : start + count], 0, wanted, work)

    def _schedule(
        self, sequence: SequenceState, tokens: Sequence[int], drafted: int, wanted: int, work: list[ScheduledSequence]
    ) -> int:
        """Allocate the blocks for a sequence's tokens, from those who came later where none are free."""
        while sequence.table.blocks_needed(len(tokens)) > self.pool.available:
            last = max(self.running, key=_order)
            self._preempt(last, work)
            if last is sequence:
                return 0
        allocated, copies = sequence.table.allocate(len(tokens))
        work.append(ScheduledSequence(sequence, tokens, drafted, wanted, allocated, copies))
        return len(tokens)

    def _preempt(self, sequence: SequenceState, work: list[ScheduledSequence]) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        # It came after all that run, and before all that wait.
        self.waiting.appendleft(sequence)
        work[:] = [own for own in work if own.sequence is not sequence]
        sequence.table.free()

    def _admit(self) -> SequenceState | None:
        if not self.waiting:
            return None
        sequence = self.waiting[0]
        if sum(map(_places, self.running)) + _places(sequence) > self.limits.max_num_sequences:
            return None
        # What is in the cache has no logits.
        anew = sequence.request.prompt_logprobs is not None and not sequence.generated
        hits = 0 if anew else sequence.table.reuse_cached(sequence.tokens)
        # Room for whole prompts, and a block for each that will want another, so that who is admitted does not preempt
        # others at once.
        wanted = sum(
            own.table.blocks_needed(own.to_prefill + 1) for own in (sequence, *self.running) if own.to_prefill > 0
        )
        wanted += sum(own.table.blocks_needed(own.to_come) > 0 for own in self.running)
        if wanted > self.pool.available and self.running:
            sequence.table.free()
            return None
        self.cache_hit_tokens += hits
        sequence.cached_tokens = min(hits, len(sequence.request.prompt))
        self.running.append(self.waiting.popleft())
        return sequence


class StaticScheduler(Scheduler):
    """Scheduling by request, as servers did before: a batch is kept together until its longest sequence is done.

    Whoever waits when a batch is done makes up the next. Texts that have ended are not computed further, and tokens are
    told as they come; both are kinder than servers of that kind were.
    """

    def step(self) -> list[ScheduledSequence]:
        """Decide who is in the next step: nobody new while anybody is in it."""
        if not self.running:
            while super()._admit() is not None:
                pass
        return super().step()

    def _admit(self) -> None:
        return None


def _places(sequence: SequenceState) -> int:
    """Count the sequences that one stands for."""
    return sequence.request.choices if sequence.stands_for_all else 1


def _order(sequence: SequenceState) -> tuple[int, int]:
    return sequence.arrived, sequence.choice
