"""The engine: takes requests from any thread, and computes them together, step by step, in one."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allyouneed.nn import Decoder, arrange_for_inference
from allyouneed.text import Sampling, mask_undecodable

from .blocks import BlockPool
from .costs import attention_context, most_tokens
from .limits import Limits
from .paged import PagedCache, Segment, paged_logits
from .requests import (
    FinishReason,
    Gathered,
    Request,
    Statistics,
    StoppedError,
    Ticket,
    TimeLimitError,
    check_fits,
    tell,
)
from .sampler import SequenceSampler, keep_prompt_logprobs
from .scheduler import Scheduler
from .sequences import ScheduledSequence, SequenceState
from .speculation import Draft


class Engine:
    """Continues many prompts at once with one model, each as if it were alone.

    Requests may be submitted and cancelled from any thread. They are computed by the thread that `start` begins, or by
    whoever calls `step`, never by two.

    Args:
        model: any `Decoder`. It is put into evaluation mode and arranged for inference.
        cache_tokens: tokens whose keys and values are kept at once; rounded up to whole blocks.
        block_size: tokens of a block.
        limits: how much is done at a time.
        draft: where draft tokens come from; needs `limits.max_draft_tokens`.
        sharing: whether blocks of earlier sequences are used again.
        scheduler: decides who is computed when.
        clock: gives the time in seconds, for time limits.

    Raises:
        ValueError: a model that cannot be paged, or steps of so many tokens that its quantised linear layers would
            compute them in another way than fewer, so that a sequence would depend on others.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        cache_tokens: int = 8192,
        block_size: int = 16,
        limits: Limits | None = None,
        draft: Draft | None = None,
        sharing: bool = True,
        scheduler: type[Scheduler] = Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ):
        limits = limits or Limits()
        if (draft is None) != (limits.max_draft_tokens == 0):
            raise ValueError(f"{limits.max_draft_tokens} draft tokens and draft {draft!r}: give both, or neither")
        if (most := most_tokens(model)) is not None and limits.max_batched_tokens > most:
            raise ValueError(
                f"max_batched_tokens {limits.max_batched_tokens} is too large for this model's quantised linear "
                "layers, which compute so many in another way than fewer, so that sequences would depend on one "
                f"another: at most {most}"
            )
        arrange_for_inference(model.eval())
        self.model = model
        self.pool = BlockPool(-(-cache_tokens // block_size), block_size, sharing=sharing)
        self.scheduler = scheduler(
            self.pool,
            limits,
            lambda sequence, most: self._samplers[sequence].propose(most),
            attention_context(model),
        )
        self._cache = PagedCache(model, self.pool)
        self._draft = draft
        self._vocabulary = model.vocabulary
        self._clock = clock
        self._tickets: dict[int, Ticket] = {}
        self._samplers: dict[SequenceState, SequenceSampler] = {}
        # Held by whoever changes who is waiting or running, but not while the model computes.
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._stopping: StoppedError | None = None
        self._steps = self._computed = self._generated = self._drafted = self._accepted = 0

    @property
    def device(self) -> torch.device:
        """Where the model is computed."""
        return self._cache.store.device

    @property
    def statistics(self) -> Statistics:
        """Count what was done, and what is."""
        with self._changed:
            return Statistics(
                self._steps,
                self._computed,
                self.scheduler.cache_hit_tokens,
                self._generated,
                self._drafted,
                self._accepted,
                self.scheduler.preemptions,
                len(self.scheduler.running),
                len(self.scheduler.waiting),
                self.pool.blocks - self.pool.available,
                self.pool.blocks,
            )

    def submit(self, request: Request) -> int:
        """Let a request wait for its turn, and give the number by which it can be cancelled.

        Raises:
            RefusedError: it does not fit into the model's context or the cache, or has tokens that there are not.
            QueueFullError: too many wait.
            StoppedError: the engine is being stopped.
        """
        check_fits(request, self._vocabulary, self.model.context)
        deadline = float("inf") if request.seconds is None else self._clock() + request.seconds
        with self._changed:
            if self._stopping is not None:
                raise self._stopping
            number = self.scheduler.add(request).arrived
            self._tickets[number] = Ticket(request, deadline, set(range(request.choices)))
            self._changed.notify_all()
        return number

    def cancel(self, number: int) -> None:
        """Say that nobody wants a request's sequences any more; its blocks are free before the next step."""
        with self._changed:
            if number in self._tickets:
                self._tickets[number].wanted = False

    def step(self) -> bool:
        """Compute one step, and say whether anything is left to do."""
        with self._changed:
            self._drop_unwanted()
            work = self.scheduler.step()
        if work:
            try:
                logits = self._compute(work)
            except Exception as error:
                for own in work:
                    self._fail(own.sequence.arrived, error)
            else:
                for own, given in zip(work, logits, strict=True):
                    self._go_on(own, given)
        return bool(self._tickets)

    def start(self) -> None:
        """Begin a thread that computes whatever is submitted, until `stop`.

        Raises:
            RuntimeError: it has begun already.
        """
        if self._worker is not None:
            raise RuntimeError("the engine has been started already")
        self._worker = threading.Thread(target=self._run, name="engine", daemon=True)
        self._worker.start()

    def stop(self, seconds: float | None = None) -> None:
        """Refuse further requests, finish those that there are, and end the thread.

        Args:
            seconds: how long to wait for them at most; what is not finished then fails.
        """
        with self._changed:
            self._refuse()
        if self._worker is not None:
            self._worker.join(seconds)
            with self._changed:
                for ticket in self._tickets.values():
                    ticket.stops_at = float("-inf")
            self._worker.join()
            self._worker = None

    def drain(self, seconds: float) -> None:
        """Begin to stop, without waiting: refuse further requests and those that wait, and let those that run go on.

        Args:
            seconds: how long those may go on; what is not finished then fails.
        """
        with self._changed:
            self._refuse()
            begun = {own.arrived for own in self.scheduler if own.generated or own in self.scheduler.running}
            for number, ticket in self._tickets.items():
                ticket.stops_at = self._clock() + seconds if number in begun else float("-inf")

    def _refuse(self) -> None:
        self._stopping = StoppedError("the engine is being stopped: ask again later")
        self._changed.notify_all()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        new_tokens: int,
        sampling: Sampling | None = None,
        stop: Collection[int] = (),
        seed: int = 0,
    ) -> list[list[int]]:
        """Continue prompts together, in the calling thread, and return what was added to each.

        Raises:
            RuntimeError: a thread computes already.
            RefusedError, QueueFullError: as `submit`.
            Exception: what a request failed of.
        """
        if self._worker is not None:
            raise RuntimeError("the engine's thread computes already: submit the requests to it")
        gathered = [Gathered() for _ in prompts]
        for prompt, own in zip(prompts, gathered, strict=True):
            self.submit(Request(prompt, new_tokens, own, sampling or Sampling(), stop, seed))
        while self.step():
            pass
        error = next((own.error for own in gathered if own.error is not None), None)
        if error is not None:
            raise error
        return [own.tokens.get(0, []) for own in gathered]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._tickets and self._stopping is None:
                    self._changed.wait()
                if not self._tickets:
                    return
            try:
                self.step()
            except Exception as error:
                # A mistake of ours. Whoever waits must hear of it all the same.
                for number in list(self._tickets):
                    self._fail(number, error)

    def _drop_unwanted(self) -> None:
        now = self._clock()
        for number, ticket in list(self._tickets.items()):
            if not ticket.wanted:
                self._forget(number)
                for choice in sorted(ticket.open):
                    tell(ticket.request.listener.ended, choice, "cancelled")
            elif self._stopping is not None and now >= ticket.stops_at:
                self._fail(number, self._stopping)
            elif now > ticket.deadline:
                late = TimeLimitError(f"the request took longer than its {ticket.request.seconds} seconds")
                self._fail(number, late)

    def _compute(self, work: Sequence[ScheduledSequence]) -> list[Float[Tensor, "_ vocabulary"]]:
        # In this order: a block that is copied from may have been given back and allocated anew since.
        self._cache.copy([pair for own in work for pair in own.copies])
        self._cache.clear([block for own in work for block in own.allocated])
        self._steps += 1
        self._computed += sum(len(own.tokens) for own in work)
        segments = [Segment(own.tokens, own.sequence.table, own.wanted) for own in work]
        return [mask_undecodable(logits, self.model) for logits in paged_logits(self.model, self._cache, segments)]

    def _go_on(self, work: ScheduledSequence, logits: Float[Tensor, "_ vocabulary"]) -> None:
        """Count what was computed for a sequence, and append what follows."""
        sequence = work.sequence
        if sequence.arrived not in self._tickets:
            return
        try:
            ended = []
            if not work.wanted:
                sequence.table.advance(sequence.tokens, len(work.tokens))
            elif not sequence.generated:
                sequence.table.advance(sequence.tokens, len(work.tokens))
                keep_prompt_logprobs(sequence, len(work.tokens), logits)
                if sequence.table.length == len(sequence.tokens):
                    ended = self._begin(sequence, logits[-1:])
            else:
                before = len(sequence.tokens)
                ended = [sequence] if self._append(sequence, logits) else []
                # The last token of before, and of what was drafted, that which was accepted.
                kept = min(len(sequence.tokens) - before, work.drafted)
                kept -= kept > 0 and sequence.tokens[before + kept - 1] != work.tokens[kept]
                self._drafted += work.drafted
                self._accepted += kept
                sequence.table.advance(sequence.tokens, 1 + kept)
            with self._changed:
                for own in ended:
                    self.scheduler.remove(own)
                    del self._samplers[own]
        except Exception as error:
            self._fail(sequence.arrived, error)

    def _begin(self, sequence: SequenceState, logits: Float[Tensor, "1 vocabulary"]) -> list[SequenceState]:
        """Begin all choices of a request whose prompt is computed, and give those that have ended at once."""
        request = sequence.request
        request.listener.prefilled(sequence.cached_tokens, sequence.prompt_logprobs)
        with self._changed:
            sequences = [sequence, *self.scheduler.fork(sequence)]
        for own in sequences:
            self._samplers[own] = SequenceSampler(own, self._vocabulary, self._draft)
        if request.new_tokens == 0:
            return [own for own in sequences if self._end(own, "length")]
        return [own for own in sequences if self._append(own, logits)]

    def _append(self, sequence: SequenceState, logits: Float[Tensor, "_ vocabulary"]) -> bool:
        """Sample tokens, add them to the sequence and tell them, and say whether the sequence has ended."""
        request = sequence.request
        sampler = self._samplers[sequence]
        for token, logprobs in sampler.sample(logits):
            if token in request.stop:
                return self._end(sequence, "stop")
            sequence.tokens.append(token)
            self._generated += 1
            if request.listener.token(sequence.choice, token, logprobs) is True or sampler.is_finished:
                return self._end(sequence, "stop")
            if sequence.remaining == 0:
                return self._end(sequence, "length")
        return False

    def _end(self, sequence: SequenceState, reason: FinishReason) -> Literal[True]:
        ticket = self._tickets[sequence.arrived]
        ticket.open.remove(sequence.choice)
        if not ticket.open:
            with self._changed:
                del self._tickets[sequence.arrived]
        sequence.request.listener.ended(sequence.choice, reason)
        return True

    def _fail(self, number: int, error: Exception) -> None:
        if (ticket := self._forget(number)) is not None:
            tell(ticket.request.listener.failed, error)

    def _forget(self, number: int) -> Ticket | None:
        """Give back all that a request has."""
        with self._changed:
            for sequence in [sequence for sequence in self.scheduler if sequence.arrived == number]:
                self.scheduler.remove(sequence)
                self._samplers.pop(sequence, None)
            return self._tickets.pop(number, None)
