"""The scheduler without a model: everyone advances, short prompts do not wait for long ones, and steps stay short."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from allyouneed.papers.serving import BlockPool, Gathered, Limits, Request, Scheduler
from allyouneed.papers.serving.budgets import Budget, cost
from allyouneed.papers.serving.sequences import ScheduledSequence, SequenceState

# About those of the server with weights of 4 bits: two places are left to short prompts, of at most 128 tokens.
LIMITS = Limits(max_num_sequences=16, max_batched_tokens=32)
ATTENTION = 700.0
SHORT = 40
# Making a failing mix smaller would take minutes.
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)


@dataclass
class Replay:
    """Steps as an engine takes them, with tokens that nobody computes.

    Attributes:
        scheduler: decides.
        steps: how many there were.
        first: the step in which a sequence's first token came, by arrival.
        ended: the same of its last.
        costs: of the steps.
        idle: steps in a row in which nothing was computed.
    """

    scheduler: Scheduler
    steps: int = 0
    first: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    costs: list[float] = field(default_factory=list)
    idle: int = 0

    def ask(self, prompt: int, new_tokens: int = 4, choices: int = 1) -> SequenceState:
        # No two prompts begin alike.
        tokens = [self.steps, len(self.scheduler), *range(prompt - 2)] if prompt > 2 else [self.steps] * prompt
        return self.scheduler.add(Request(tokens, new_tokens, Gathered(), choices=choices))

    def step(self) -> list[ScheduledSequence]:
        scheduler = self.scheduler
        work = scheduler.step()
        # One that was preempted may find all its blocks in the cache, and goes on in the next step.
        self.idle = 0 if work or not len(scheduler) else self.idle + 1
        assert self.idle < 2, "nothing is computed, though somebody waits"
        assert len({own.sequence for own in work}) == len(work)
        assert sum(len(own.tokens) for own in work) <= scheduler.limits.max_batched_tokens
        spent = sum(cost(own.sequence.table.length, len(own.tokens), scheduler.attention_context) for own in work)
        self.costs.append(spent)
        self.steps += 1
        for own in work:
            sequence = own.sequence
            sequence.table.advance(sequence.tokens, len(own.tokens))
            if not own.wanted:
                continue
            begun = [sequence] if sequence.generated else [sequence, *scheduler.fork(sequence)]
            self.first.setdefault(sequence.arrived, self.steps)
            for one in begun:
                one.tokens.append(0)
                if one.remaining == 0:
                    scheduler.remove(one)
                    self.ended[one.arrived] = self.steps
        scheduler.pool.check(own.table for own in scheduler)
        return work

    def finish(self, most: int = 100_000) -> None:
        while len(self.scheduler):
            assert self.steps < most, "it does not come to an end"
            self.step()
        assert self.scheduler.pool.available == self.scheduler.pool.blocks


def replay(blocks: int = 700, limits: Limits = LIMITS, attention: float = ATTENTION, sharing: bool = True) -> Replay:
    return Replay(Scheduler(BlockPool(blocks, 16, sharing=sharing), limits, attention_context=attention))


def bound(blocks: int, asked: Sequence[tuple[int, int, int]]) -> float:
    """Give the most steps of the worst mix: each in turn is the oldest, which has a quarter of what decoding leaves."""
    least = (LIMITS.max_batched_tokens - LIMITS.max_num_sequences) // 4
    return 300 + sum(2 * cost(0, prompt, ATTENTION) / least + 2 * new * choices for prompt, new, choices in asked)


class TestEverybodyAdvances:
    @given(
        blocks=st.integers(70, 400),
        asked=st.lists(
            st.tuples(st.integers(0, 30), st.integers(1, 1000), st.integers(1, 60), st.sampled_from([1, 1, 1, 2, 16])),
            min_size=1,
            max_size=40,
        ),
        sharing=st.booleans(),
    )
    @settings(max_examples=30, deadline=None, phases=QUICK)
    def test_whatever_comes_and_whenever(
        self, blocks: int, asked: list[tuple[int, int, int, int]], sharing: bool
    ) -> None:
        """Also where memory is short: every request is answered, within a bound, and steps stay short."""
        ours = replay(blocks, sharing=sharing)
        for after, prompt, new_tokens, choices in asked:
            for _ in range(after):
                ours.step()
            ours.ask(prompt, new_tokens, choices)
        most = bound(blocks, [own[1:] for own in asked])
        ours.finish(math.ceil(most))
        assert ours.ended.keys() == set(range(len(asked)))
        # Three times what tokens cost at the beginning, what must go on in any case, and one token too many of each.
        dearest = 1 + 1100 / ATTENTION
        assert max(ours.costs) <= 3.5 * LIMITS.max_batched_tokens + 2 * dearest

    def test_a_long_prompt_beside_short_ones_without_end(self) -> None:
        """It is the oldest, so that a quarter of each step is its."""
        ours = replay(attention=math.inf)
        long = ours.ask(4000)
        while long.arrived not in ours.first:
            ours.ask(SHORT)
            ours.step()
        assert 4000 / 32 < ours.first[long.arrived] <= 4000 / 4

    def test_a_long_prompt_that_finds_no_room_is_not_overtaken_for_ever(self) -> None:
        """Short ones that came later have its blocks and places, and come without end."""
        for limits, prompt in ((LIMITS, 1000), (Limits(max_num_sequences=4, max_batched_tokens=32), 200)):
            ours = replay(64, limits)
            for _ in range(20):
                ours.ask(SHORT, 30)
                ours.step()
            long = ours.ask(prompt)
            while long.arrived not in ours.first:
                if len(ours.scheduler.waiting) < 5:
                    ours.ask(SHORT, 30)
                ours.step()
                assert ours.steps < 2000
            ours.finish()

    def test_many_choices_wait_for_all_places_and_not_for_ever(self) -> None:
        ours = replay()
        for _ in range(5):
            ours.ask(SHORT, 50)
            ours.step()
        all_places = ours.ask(200, 3, choices=16)
        while all_places.arrived not in ours.first:
            if len(ours.scheduler.waiting) < 5:
                ours.ask(SHORT, 50)
            ours.step()
            assert ours.steps < 2000
        ours.finish()


class TestShortPrompts:
    @given(
        before=st.lists(st.tuples(st.integers(129, 3000), st.integers(1, 400)), min_size=1, max_size=60),
        after=st.integers(0, 200),
        blocks=st.integers(230, 700),
    )
    @settings(max_examples=30, deadline=None, phases=QUICK)
    def test_do_not_wait_for_long_ones(self, before: list[tuple[int, int]], after: int, blocks: int) -> None:
        """Wherever they are, being read or written, in places, in memory or in the queue."""
        ours = replay(blocks)
        for prompt, new_tokens in before:
            ours.ask(prompt, new_tokens)
        for _ in range(after):
            ours.step()
        short = ours.ask(SHORT, 1)
        since = ours.steps
        while short.arrived not in ours.first:
            ours.step()
            # Of 16 tokens that decoding leaves, the oldest keeps 4: 40 tokens take four steps.
            assert ours.steps - since <= 5
        assert sum(ours.costs[since:]) < 5 * 4 * LIMITS.max_batched_tokens

    def test_their_first_tokens_come_in_the_order_of_arrival(self) -> None:
        ours = replay()
        ours.ask(5000)
        for _ in range(30):
            ours.ask(SHORT)
        ours.finish()
        order = sorted(range(1, 31), key=lambda arrived: (ours.first[arrived], arrived))
        assert order == list(range(1, 31)) and ours.first[0] == max(ours.first.values())

    def test_a_prompt_of_middling_length_does_not_wait_for_a_very_long_one(self) -> None:
        ours = replay(1000)
        very_long, middling, same = ours.ask(7000), ours.ask(400), ours.ask(400)
        ours.finish()
        assert ours.first[middling.arrived] < ours.first[same.arrived] < ours.first[very_long.arrived] / 4

    def test_one_makes_room_for_its_first_token(self) -> None:
        """It preempts the long one that came last, and not the oldest."""
        limits = Limits(max_num_sequences=4, max_batched_tokens=32)
        ours = replay(48, limits, attention=math.inf)
        long = [ours.ask(250, 100), ours.ask(250, 100), ours.ask(200, 60)]
        while len(ours.first) < 3:
            ours.step()
        while ours.scheduler.pool.available > 2:
            ours.step()
        short = ours.ask(SHORT, 1)
        ours.step()
        assert short in ours.scheduler.running and long[2] in ours.scheduler.waiting
        assert long[0] in ours.scheduler.running and long[1] in ours.scheduler.running
        ours.finish()


class TestEquals:
    @given(
        count=st.integers(2, 30),
        prompt=st.integers(1, 300),
        new_tokens=st.integers(1, 20),
        between=st.integers(0, 3),
    )
    @settings(max_examples=30, deadline=None, phases=QUICK)
    def test_are_served_in_the_order_of_arrival(self, count: int, prompt: int, new_tokens: int, between: int) -> None:
        ours = replay(400)
        for _ in range(count):
            ours.ask(prompt, new_tokens)
            for _ in range(between):
                ours.step()
        ours.finish()
        firsts = [ours.first[arrived] for arrived in range(count)]
        assert firsts == sorted(firsts)

    def test_the_one_that_came_last_is_preempted(self) -> None:
        ours = replay(12, Limits(max_num_sequences=3, max_batched_tokens=64), sharing=False)
        asked = [ours.ask(30, 60) for _ in range(3)]
        while not ours.scheduler.preemptions:
            ours.step()
        assert ours.scheduler.waiting == [asked[2]] and ours.scheduler.running == asked[:2]
        ours.finish()
        assert ours.ended[0] <= ours.ended[1] <= ours.ended[2]


class TestBudget:
    @pytest.mark.parametrize("context", [math.inf, 700.0, 3.0])
    def test_as_many_are_affordable_as_cost_no_more(self, context: float) -> None:
        for start in (0, 1, 100, 8000):
            for left in (0.5, 7.0, 96.0, 1000.0):
                count = Budget(10**6, left, context).affordable(start, 10**5)
                assert cost(start, count, context) <= left or count == 1
                assert cost(start, count + 1, context) > left

    def test_is_spent(self) -> None:
        budget = Budget(10, 20.0, 5.0)
        aside = budget.set_aside(4)
        assert (aside.tokens, aside.cost, budget.tokens, budget.cost) == (3, 5.0, 7, 15.0)
        budget.spend(100, 1)
        assert budget.cost == 15 - 21 and budget.affordable(0, 9) == 0
        budget.put_back(aside)
        assert (budget.tokens, budget.cost) == (9, 5.0) and budget.affordable(100, 9) == 1
        assert Budget(0, 5.0, 5.0).affordable(0, 3) == 0
