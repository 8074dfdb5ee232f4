"""Sequences: what a request asks for, as far as it is computed; and what a step does for each. No tensors here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .blocks import BlockTable
from .requests import LogProbabilities, Request


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
    def order(self) -> tuple[int, int]:
        """The place in the order of arrival."""
        return self.arrived, self.choice

    @property
    def places(self) -> int:
        """How many sequences it stands for."""
        return self.request.choices if self.stands_for_all else 1

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
        """How many tokens are to be computed in chunks before the first is generated, or the sequence goes on.

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
