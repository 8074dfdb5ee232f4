"""What an engine is asked, what it tells while it works, and how it refuses."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from allyouneed.text import Constraint, Sampling

FinishReason = Literal["stop", "length", "cancelled"]
"""Why a sequence ended: a stop token or whoever listens said so, it has all its tokens, or nobody wants it."""


class RefusedError(ValueError):
    """A request that this engine can never answer, such as one that is longer than the model's context."""


class QueueFullError(RuntimeError):
    """More requests wait than the engine lets wait: try again later."""


class StoppedError(RuntimeError):
    """The engine was stopped before the request was answered."""


class TimeLimitError(RuntimeError):
    """The request took longer than it may."""


@dataclass(frozen=True)
class LogProbabilities:
    """How likely a token was, by the model as it is: before temperature and filters.

    Attributes:
        token: the logarithm of its probability.
        top: those of the likeliest tokens, by id, the likeliest first; as many as the request asks for.
    """

    token: float
    top: Mapping[int, float]


@runtime_checkable
class Listener(Protocol):
    """Who is told what becomes of a request, from the engine's thread: what it does should be quick."""

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """Hear that the prompt is computed.

        Args:
            cached_tokens: how many of its tokens were in the cache.
            logprobs: of its tokens from the second on, where they were asked for.
        """
        ...

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        """Take a token of one of the sequences; True ends it here."""
        ...

    def ended(self, choice: int, reason: FinishReason) -> None:
        """Hear that a sequence has ended."""
        ...

    def failed(self, error: Exception) -> None:
        """Hear that no more will come of any of the sequences; those that have ended stay as they are."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt that is to be continued, once or several times.

    Attributes:
        prompt: its tokens; at least one.
        new_tokens: the most tokens of each sequence; 0 only where `prompt_logprobs` is given.
        listener: is told what comes.
        sampling: how tokens are sampled.
        stop: tokens that end a sequence and are not told.
        seed: of what is sampled; each choice has a generator of its own, the one that `text.generate` gives this row.
        choices: how many sequences are wanted.
        logprobs: give the log probabilities of tokens, and of this many of the likeliest besides; none where None.
        seconds: the longest that all of it may take, waiting included; no limit where None.
        prompt_logprobs: the same for the prompt, which is then computed anew, though it may be in the cache.
        min_new_tokens: `stop` does not end a sequence before it has so many tokens.
        constraint: what may follow in each sequence, such as a grammar's; anything where None. It is copied.

    Raises:
        RefusedError: a number out of range.
    """

    prompt: Sequence[int]
    new_tokens: int
    listener: Listener
    sampling: Sampling = field(default_factory=Sampling)
    stop: Collection[int] = ()
    seed: int = 0
    choices: int = 1
    logprobs: int | None = None
    seconds: float | None = None
    prompt_logprobs: int | None = None
    min_new_tokens: int = 0
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise RefusedError("the prompt is empty: it needs at least one token")
        fewest = 1 if self.prompt_logprobs is None else 0
        ranges = ("new_tokens", fewest), ("choices", 1), ("seed", 0), ("logprobs", 0), ("prompt_logprobs", 0)
        for name, least in (*ranges, ("min_new_tokens", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise RefusedError(f"{name} {getattr(self, name)} is out of range: it must be at least {least}")
        if self.min_new_tokens > self.new_tokens:
            raise RefusedError(f"min_new_tokens {self.min_new_tokens} are more than new_tokens {self.new_tokens}")
        if self.seconds is not None and not self.seconds > 0:
            raise RefusedError(f"seconds {self.seconds} is out of range: it must be above 0")


@dataclass
class Gathered:
    """A listener that keeps what it is told.

    Attributes:
        tokens: of each choice.
        logprobs: of each choice's tokens, where they were asked for.
        cached_tokens: how many tokens of the prompt were in the cache.
        prompt_logprobs: of the prompt's tokens from the second on, where they were asked for.
        reasons: why each choice ended.
        error: why no more comes.
    """

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[LogProbabilities]] = field(default_factory=dict)
    cached_tokens: int = 0
    prompt_logprobs: Sequence[LogProbabilities] = ()
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    error: Exception | None = None

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """Keep what is told of the prompt."""
        self.cached_tokens, self.prompt_logprobs = cached_tokens, logprobs

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        """Keep a token."""
        self.tokens.setdefault(choice, []).append(token)
        if logprobs is not None:
            self.logprobs.setdefault(choice, []).append(logprobs)

    def ended(self, choice: int, reason: FinishReason) -> None:
        """Keep the reason."""
        self.reasons[choice] = reason

    def failed(self, error: Exception) -> None:
        """Keep the error."""
        self.error = error


@dataclass(frozen=True)
class Statistics:
    """What an engine has done, and does.

    Attributes:
        steps: times that the model was computed.
        computed_tokens: tokens in these steps.
        cache_hit_tokens: tokens that were not computed, because their blocks were in the cache.
        generated_tokens: of all sequences.
        draft_tokens: proposed for them.
        accepted_tokens: draft tokens that were accepted.
        preemptions: times that a sequence lost its blocks to another.
        running: sequences that are being computed.
        waiting: sequences that wait.
        allocated_blocks: blocks that sequences hold.
        total_blocks: all blocks.
    """

    steps: int
    computed_tokens: int
    cache_hit_tokens: int
    generated_tokens: int
    draft_tokens: int
    accepted_tokens: int
    preemptions: int
    running: int
    waiting: int
    allocated_blocks: int
    total_blocks: int


@dataclass(eq=False)
class Ticket:
    """A request that is not answered yet.

    Attributes:
        request: what was asked.
        deadline: by the engine's clock, when it fails for its own time limit.
        open: choices that have not ended.
        wanted: whether anybody still waits for it.
        stops_at: when it fails because the engine is being stopped.
    """

    request: Request
    deadline: float
    open: set[int]
    wanted: bool = True
    stops_at: float = float("inf")


def check_fits(request: Request, vocabulary: int, context: int | None) -> None:
    """Refuse what a model cannot compute.

    Args:
        request: what is asked for.
        vocabulary: tokens of the model.
        context: the most tokens that it reads; None where there is no bound.

    Raises:
        RefusedError: tokens that there are not, or more of them than the context has.
    """
    outside = next((token for token in request.prompt if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise RefusedError(f"token {outside} is not in the vocabulary: ids are 0 to {vocabulary - 1}")
    outside = next((token for token in request.sampling.logit_bias if token >= vocabulary), None)
    if outside is not None:
        raise RefusedError(f"logit_bias has token {outside}, but ids are 0 to {vocabulary - 1}")
    if context is not None and len(request.prompt) + request.new_tokens > context:
        raise RefusedError(
            f"{len(request.prompt)} tokens of prompt and {request.new_tokens} new ones are more than the model's "
            f"context of {context}"
        )


def tell(told: Callable[..., Any], *what: Any) -> None:
    """Tell a listener what it cannot change; that it fails must not concern others."""
    try:
        told(*what)
    except Exception as error:
        warnings.warn(f"a listener failed: {error!r}", stacklevel=2)
