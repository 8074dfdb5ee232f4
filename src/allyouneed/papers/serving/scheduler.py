"""Who is computed in the next step: continuous batching (Orca), chunked prefill (SARATHI), preemption (vLLM).

Again without tensors: a scheduler decides, allocates blocks, and counts.
"""

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from .blocks import BlockPool, BlockTable
from .budgets import Budget, cost
from .limits import Limits
from .requests import QueueFullError, RefusedError, Request
from .sequences import ScheduledSequence, SequenceState

# A step costs at most so many times as much as its tokens would at the beginning of their sequences. With less, long
# prompts would be read in chunks so small that reading the weights anew for each would tell.
_STEP_COST = 3
# The part of a step's room for prompts that is the oldest one's, whatever else there is, so that it always advances.
_OLDEST_PART = 4
# A prompt that fills at most so many steps is short.
_SHORT_STEPS = 4
# The part of all places that long prompts leave to short ones.
_PLACES_PART = 8
# Blocks that a short prompt leaves to each long one that is not computed yet.
_GROWTH = 2
# For so many steps others may be admitted before the one that has waited longest and finds no room.
_PATIENCE = 256

ProposeDraft = Callable[[SequenceState, int], Sequence[int]]
"""Gives tokens that may follow a sequence, no more than a number."""


class Scheduler:
    """Decides anew before each step who is in it.

    Every sequence whose prompt is computed gets its next token. What is left of a step is for chunks of prompts: of the
    one first of which the least is to be computed (shortest remaining time first makes the mean wait the shortest), and
    among about equal ones of the one that came first. A quarter of it is the oldest prompt's in any case, so that long
    ones are not starved. A token costs the more the more it attends to, and the cost of a step is bounded: nobody waits
    long for its end, however long another's prompt is.

    Who waits is admitted in the same order as soon as there is room, and never before one of about the same length that
    came earlier. Long prompts leave some places to short ones; and when the one that came first has found no room for
    long enough, hardly anybody is admitted before it any more. Where blocks run out, the sequence that came last is
    preempted and waits: it is computed again later, as far as its blocks are not in the cache. A short prompt that
    finds no blocks preempts a long one, but never the oldest sequence.

    Args:
        pool: owns the blocks.
        limits: how much is done at a time.
        propose: gives draft tokens; none where None.
        attention_context: a token that attends to so many others costs twice as much as the first of a sequence.

    Attributes:
        waiting: who is not in yet, in the order of arrival.
        running: who is.
        preemptions: how often a sequence lost its blocks to another.
        cache_hit_tokens: how many tokens were not computed, because their blocks were in the cache.
    """

    def __init__(
        self,
        pool: BlockPool,
        limits: Limits,
        propose: ProposeDraft | None = None,
        attention_context: float = math.inf,
    ):
        self.pool = pool
        self.limits = limits
        self.attention_context = attention_context
        self.waiting: list[SequenceState] = []
        self.running: list[SequenceState] = []
        self.preemptions = 0
        self.cache_hit_tokens = 0
        self._propose = propose
        self._arrivals = itertools.count()
        # Steps in which the one that has waited longest found no room.
        self._refusals = 0

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
        most = self.limits.max_batched_tokens
        budget = Budget(most, _STEP_COST * most, self.attention_context)
        for sequence in sorted(self.running, key=arrival):
            # One may have been preempted for another.
            if sequence in self.running and sequence.to_prefill == 0:
                self._decode(sequence, budget, work)
        # Prompts go on, too, beside sequences that attend to very much.
        budget.cost = max(budget.cost, most / 2)
        self._prefill_all(budget, work)
        return work

    def _prefill_all(self, budget: Budget, work: list[ScheduledSequence]) -> None:
        """Fill a step with chunks of prompts, of sequences that run and of those that can be admitted."""
        # Whoever is preempted meanwhile does not come back in the same step.
        candidates, waiting, barred = list(self), list(self.waiting), math.inf
        if waiting and budget.tokens:
            if self._enter(waiting[0], work):
                self._refusals = 0
            else:
                self._refusals += 1
                barred = self._size(waiting[0])
        oldest = min((own for own in self.running if own.to_prefill > 0), key=arrival, default=None)
        aside = budget.set_aside(_OLDEST_PART) if oldest is not None else None
        for sequence in sorted(candidates, key=lambda own: (self._size(own), own.order)):
            # Behind one that finds no room, none of its size or a larger one is admitted.
            enters = sequence in waiting and sequence in self.waiting and budget.tokens
            if enters and (size := self._size(sequence)) < barred and not self._enter(sequence, work):
                barred = size
            if sequence is oldest and aside is not None:
                budget.put_back(aside)
            # One whose blocks are all in the cache goes on in the next step.
            if sequence in self.running and sequence.to_prefill > 0:
                self._prefill(sequence, budget, work)

    def _decode(self, sequence: SequenceState, budget: Budget, work: list[ScheduledSequence]) -> None:
        most = min(self.limits.max_draft_tokens, sequence.remaining - 1)
        drafted = list(self._propose(sequence, most)) if self._propose is not None and most > 0 else []
        self._schedule(sequence, [sequence.tokens[-1], *drafted], len(drafted), 1 + len(drafted), budget, work)

    def _prefill(self, sequence: SequenceState, budget: Budget, work: list[ScheduledSequence]) -> None:
        start = sequence.table.length
        if count := budget.affordable(start, sequence.to_prefill):
            wanted = int(count == sequence.to_prefill and not sequence.generated)
            if _scores_prompt(sequence):
                wanted = count
            self._schedule(sequence, sequence.tokens[start : start + count], 0, wanted, budget, work)

    def _size(self, sequence: SequenceState) -> int:
        """Give the class of a sequence by what is to be computed of its prompt, in steps: each is twice as wide."""
        to_spend = cost(sequence.table.length, sequence.to_prefill, self.attention_context)
        return int(to_spend / self.limits.max_batched_tokens).bit_length()

    def _schedule(
        self,
        sequence: SequenceState,
        tokens: Sequence[int],
        drafted: int,
        wanted: int,
        budget: Budget,
        work: list[ScheduledSequence],
    ) -> None:
        """Allocate the blocks for a sequence's tokens, from those who came later where none are free."""
        while sequence.table.blocks_needed(len(tokens)) > self.pool.available:
            last = max(self.running, key=arrival)
            self._preempt(last, work)
            if last is sequence:
                return
        budget.spend(sequence.table.length, len(tokens))
        allocated, copies = sequence.table.allocate(len(tokens))
        work.append(ScheduledSequence(sequence, tokens, drafted, wanted, allocated, copies))

    def _preempt(self, sequence: SequenceState, work: list[ScheduledSequence]) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        bisect.insort(self.waiting, sequence, key=arrival)
        work[:] = [own for own in work if own.sequence is not sequence]
        sequence.table.free()

    def _enter(self, sequence: SequenceState, work: list[ScheduledSequence]) -> bool:
        """Let a sequence that waits run, in place of others if need be."""
        return self._admit(sequence) or (self._make_room(sequence, work) and self._admit(sequence))

    def _admit(self, sequence: SequenceState) -> bool:
        """Let a sequence that waits run, if there is a place and blocks for it."""
        if not self._has_place(sequence):
            return False
        # What is in the cache has no logits.
        hits = 0 if _scores_prompt(sequence) else sequence.table.reuse_cached(sequence.tokens)
        if not self._has_blocks(sequence):
            sequence.table.free()
            return False
        self.cache_hit_tokens += hits
        sequence.cached_tokens = min(hits, len(sequence.request.prompt))
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _has_place(self, sequence: SequenceState) -> bool:
        """Say whether a sequence may be generated beside those that run."""
        taken, most = sum(own.places for own in self.running), self.limits.max_num_sequences
        left_free = most // _PLACES_PART
        if taken and self._is_long(sequence):
            most -= left_free
        if taken + sequence.places > most:
            return False
        first = self.waiting[0]
        if sequence is first or self._refusals <= _PATIENCE or self._has_place(first):
            return True
        # Those that came later must not keep the first from its place for ever.
        later = sum(own.places for own in self.running if own.order > first.order)
        return later + sequence.places <= min(left_free, self.limits.max_num_sequences - first.places)

    def _has_blocks(self, sequence: SequenceState) -> bool:
        """Say whether there are blocks for a prompt, beside those that others need next.

        Room for whole prompts, and a block for each that will want another, so that who is admitted does not preempt
        others at once. Of what long prompts will need, short ones leave free only the next blocks.
        """
        if not self.running:
            return True
        others = self.running
        free = self.pool.available
        if sequence is self.waiting[0] and self._refusals > _PATIENCE:
            # It came before them, and will preempt them if need be.
            later = [own for own in others if own.order > sequence.order]
            others = [own for own in others if own.order < sequence.order]
            held = Counter(block for own in later for block in own.table.blocks)
            free += sum(self.pool.holders(block) == count for block, count in held.items())
        short = not self._is_long(sequence)
        needed = sequence.table.blocks_needed(sequence.to_prefill + 1)
        for own in others:
            promised = own.table.blocks_needed(own.to_prefill + 1) if own.to_prefill > 0 else 0
            promised += own.table.blocks_needed(own.to_come) > 0
            needed += min(promised, _GROWTH) if short and self._is_long(own) else promised
        return needed <= free

    def _make_room(self, sequence: SequenceState, work: list[ScheduledSequence]) -> bool:
        """Preempt long prompts for the first token of a short one that finds a place but no blocks."""
        if self._is_long(sequence) or sequence.generated or not self._has_place(sequence):
            return False
        # All but the oldest of all, so that one is always finished.
        long = sorted(filter(self._is_long, sorted(self.running, key=arrival)[1:]), key=arrival)
        held = sum(len(own.table.blocks) for own in long)
        if sequence.table.blocks_needed(sequence.to_prefill + 1) > self.pool.available + held:
            return False
        while long and not self._has_blocks(sequence):
            self._preempt(long.pop(), work)
        return self._has_blocks(sequence)

    def _is_long(self, sequence: SequenceState) -> bool:
        return len(sequence.request.prompt) > _SHORT_STEPS * self.limits.max_batched_tokens


class StaticScheduler(Scheduler):
    """Static batching, as servers did before: a batch is kept together until its longest sequence is done.

    Whoever waits when a batch is done makes up the next. Sequences that have ended are not computed further, and tokens
    are told as they come; both are kinder than servers of that kind were.
    """

    def step(self) -> list[ScheduledSequence]:
        """Decide who is in the next step: nobody new while anybody is in it."""
        if not self.running:
            while self.waiting and super()._admit(self.waiting[0]):
                pass
        return super().step()

    def _enter(self, sequence: SequenceState, work: list[ScheduledSequence]) -> bool:
        return False


def _scores_prompt(sequence: SequenceState) -> bool:
    return sequence.request.prompt_logprobs is not None and not sequence.generated


def arrival(sequence: SequenceState) -> tuple[int, int]:
    """Give a sequence's place in the order of arrival."""
    return sequence.order
