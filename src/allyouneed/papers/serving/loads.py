"""Loads: requests that arrive at random, in a time that counts only what is computed, or in steps without a model."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from allyouneed.text import Sampling

from .blocks import BlockPool
from .engine import Engine
from .limits import Limits
from .requests import FinishReason, Gathered, LogProbabilities, Request
from .scheduler import Scheduler
from .sequences import SequenceState

_GREEDY = Sampling.greedy()


@dataclass(frozen=True)
class Arrival:
    """A request of a load.

    Attributes:
        at: when it comes, in seconds.
        prompt: its tokens.
        new_tokens: how many are generated.
    """

    at: float
    prompt: Sequence[int]
    new_tokens: int


@dataclass
class Told:
    """A listener that notes when tokens come.

    Attributes:
        arrival: what was asked.
        tokens: what came.
        times: of each token, in seconds.
    """

    arrival: Arrival
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """The first token comes next."""

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        """Keep a token."""
        self.tokens.append(token)

    def ended(self, choice: int, reason: FinishReason) -> None:
        """All has come."""

    def failed(self, error: Exception) -> None:
        """Let the error through: nothing may fail here."""
        raise error

    def note(self, now: float) -> None:
        """Give tokens that have no time yet this one."""
        self.times += [now] * (len(self.tokens) - len(self.times))


def heavy_tailed(draw: random.Random, median: float, spread: float, longest: int, shortest: int = 2) -> int:
    """Draw a length: its logarithm is normal, as those of chats about are; most are short, and a few long."""
    return min(longest, max(shortest, round(draw.lognormvariate(math.log(median), spread))))


def clock_of(engine: Engine) -> Callable[[], float]:
    """Give the clock by which steps are timed.

    On a CPU it is that of the processor's own seconds, in which nothing else that the machine does is counted.
    """
    return time.process_time if engine.device.type == "cpu" else time.perf_counter


def play(engine: Engine, arrivals: Sequence[Arrival]) -> list[Told]:
    """Serve a load, and say when every token came.

    Time passes only while the engine computes; where it has nothing to do, the next arrival comes at once.
    """
    clock = clock_of(engine)
    now, told = 0.0, []
    waiting = sorted(arrivals, key=lambda arrival: arrival.at)[::-1]
    busy = False
    while waiting or busy:
        if not busy:
            now = max(now, waiting[-1].at)
        while waiting and waiting[-1].at <= now:
            told.append(Told(waiting.pop()))
            engine.submit(Request(told[-1].arrival.prompt, told[-1].arrival.new_tokens, told[-1], _GREEDY))
        began = clock()
        busy = engine.step()
        now += clock() - began
        for own in told:
            own.note(now)
    return told


def full_step_seconds(engine: Engine, prompt: int, sequences: int, vocabulary: int, steps: int = 30) -> float:
    """Measure a step in which as many sequences are decoded as may be, and nothing else.

    Of a few the fastest, which what else the machine does has slowed the least.

    Raises:
        RuntimeError: not all sequences were in these steps, so that they were not full.
    """
    draw = random.Random(0)
    # The first sequences are decoded while the last prompts are still being read, and must not end before.
    reading = math.ceil(sequences * prompt / (engine.scheduler.limits.max_batched_tokens - sequences))
    room = reading + 2 * steps
    arrivals = [Arrival(0.0, [draw.randrange(vocabulary) for _ in range(prompt)], room) for _ in range(sequences)]
    numbers = [engine.submit(Request(own.prompt, own.new_tokens, Gathered(), _GREEDY)) for own in arrivals]
    while engine.scheduler.waiting or any(sequence.to_prefill for sequence in engine.scheduler.running):
        engine.step()
    clock, seconds = clock_of(engine), []
    for _ in range(steps):
        began = clock()
        engine.step()
        seconds.append(clock() - began)
    if (running := len(engine.scheduler.running)) < sequences:
        raise RuntimeError(f"only {running} of {sequences} sequences were in the steps that were timed")
    for number in numbers:
        engine.cancel(number)
    engine.step()
    return min(seconds)


def service_times(told: Sequence[Told]) -> dict[str, float]:
    """Say how fast a load was served, in seconds.

    `first` is the time to the first token, `further` that of each later one on average, `whole` a request's time
    divided by its tokens, waiting included (Orca's normalised latency), `pause` what lies between two tokens, and
    `longest_pause` the longest of a request's pauses.
    """
    measures = {
        "first": [own.times[0] - own.arrival.at for own in told],
        "further": [(own.times[-1] - own.times[0]) / (len(own.times) - 1) for own in told if len(own.times) > 1],
        "whole": [(own.times[-1] - own.arrival.at) / len(own.times) for own in told],
    }
    waits = [[later - earlier for earlier, later in zip(own.times, own.times[1:], strict=False)] for own in told]
    measures["pause"] = [pause for own in waits for pause in own]
    measures["longest_pause"] = [max(own) for own in waits if own]
    begins, ends = min(own.arrival.at for own in told), max(own.times[-1] for own in told)
    result = {"tokens_a_second": sum(len(own.times) for own in told) / (ends - begins)}
    for name, values in measures.items():
        ordered = sorted(values)
        result[f"{name}_mean"] = sum(ordered) / len(ordered)
        for share in (50, 90, 99):
            result[f"{name}_p{share}"] = ordered[math.ceil(share / 100 * len(ordered)) - 1]
    return result


def fill_memory(
    *, seed: int, requests: int, context: int, contexts: int, block: int, means: tuple[float, float], spread: float
) -> Mapping[str, float]:
    """Serve requests that are all there from the beginning, without a model, and count what the blocks hold.

    Averages are over the steps in which someone still waits, so that memory is the limit. Blocks of a whole context
    are what a server reserves that gives each sequence room for the longest one.

    Args:
        seed: of the lengths.
        requests: how many there are.
        context: the most tokens of a prompt and its continuation together.
        contexts: the memory, in so many contexts.
        block: tokens of a block.
        means: of the lengths of prompts and continuations, before they are cut to the context.
        spread: standard deviation of their logarithms.
    """
    draw = random.Random(seed)
    pool = BlockPool(contexts * context // block, block, sharing=False)
    scheduler = Scheduler(
        pool, Limits(max_num_sequences=requests, max_batched_tokens=requests + contexts * context, max_queue=requests)
    )
    for _ in range(requests):
        # The median of such lengths lies below their mean.
        prompt, new_tokens = (
            heavy_tailed(draw, mean * math.exp(-(spread**2) / 2), spread, context // 2) for mean in means
        )
        scheduler.add(Request([0] * prompt, new_tokens, Gathered()))
    steps = held = used = running = 0
    while len(scheduler):
        crowded = bool(scheduler.waiting)
        _step_without_model(scheduler)
        if crowded and scheduler.waiting:
            steps += 1
            held += (pool.blocks - pool.available) * block
            used += sum(sequence.table.length for sequence in scheduler.running)
            running += len(scheduler.running)
        _let_go(scheduler)
    return {
        "waste": 1 - used / held,
        "sequences_at_once": running / steps,
        "steps": steps,
        "preempted": scheduler.preemptions,
    }


def first_token_steps(scheduler: Scheduler, arrivals: Sequence[Arrival]) -> list[float]:
    """Serve a load without a model, and count how many steps each request waits for its first token.

    Args:
        scheduler: a new one; it must have room for all that wait.
        arrivals: in the order of their times, which are in steps.
    """
    waits: list[float] = []
    came: dict[int, float] = {}
    left, now = list(arrivals)[::-1], 0.0
    while left or len(scheduler):
        if not len(scheduler):
            now = max(now, left[-1].at)
        while left and left[-1].at <= now:
            arrival = left.pop()
            scheduler.add(Request(arrival.prompt, arrival.new_tokens, Gathered()))
            came[id(scheduler.waiting[-1])] = arrival.at
        begun = _step_without_model(scheduler)
        now += 1
        waits += [now - came.pop(id(sequence)) for sequence in begun if id(sequence) in came]
        _let_go(scheduler)
    return waits


def _step_without_model(scheduler: Scheduler) -> list[SequenceState]:
    """Take a step in which every token is 0, and give the sequences that got one."""
    given = []
    for work in scheduler.step():
        sequence = work.sequence
        sequence.table.advance(sequence.tokens, len(work.tokens))
        if work.wanted:
            sequence.tokens.append(0)
            given.append(sequence)
    return given


def _let_go(scheduler: Scheduler) -> None:
    for sequence in [own for own in scheduler.running if own.remaining == 0]:
        scheduler.remove(sequence)
