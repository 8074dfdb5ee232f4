"""What is asked of a model, and what comes back: prompts and completions, continuations and their log probabilities."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from allyouneed.text import Message, Sampling
from allyouneed.text.checks import check_count

Prompt = str | Sequence[Message]
"""A text that is to be continued, or a conversation that is to be answered."""

FinishReason = Literal["stop", "length"]
"""Why a completion ended: it was at its end, or it has all the tokens that it may have."""


@dataclass(frozen=True)
class CompletionRequest:
    """A prompt, and how it is to be completed.

    Attributes:
        prompt: a text, or a conversation.
        new_tokens: the most tokens of the completion.
        sampling: how tokens are sampled; as the model has it where None.
        stop_strings: strings that end the completion, and are not part of it.
        seed: of what is sampled; 0 or more.
        schema: a JSON schema that the completion must follow, by a constraint on the sampler; none where None.

    Raises:
        ValueError: no prompt, or a number out of range.
    """

    prompt: Prompt
    new_tokens: int = 512
    sampling: Sampling | None = None
    stop_strings: Sequence[str] = ()
    seed: int = 0
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        check_count("new_tokens", self.new_tokens)
        check_count("seed", self.seed, 0)

    def key(self, identity: Mapping[str, Any]) -> str:
        """Give the SHA-256 of all that the completion depends on.

        Args:
            identity: of the model.
        """
        sampling = None if self.sampling is None else asdict(self.sampling)
        if sampling is not None:
            sampling["logit_bias"] = sorted(sampling["logit_bias"].items())
        content = {**asdict(replace(self, sampling=None)), "sampling": sampling, "stop_strings": [*self.stop_strings]}
        return digest({"completion": _plain(content), "model": identity})


@dataclass(frozen=True)
class ScoreRequest:
    """A prompt, and continuations of it whose log probabilities are wanted.

    Attributes:
        prompt: a text, or a conversation whose answers the continuations are.
        continuations: texts; each has at least one token.

    Raises:
        ValueError: no prompt, no continuations, or an empty one.
    """

    prompt: Prompt
    continuations: Sequence[str]

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if isinstance(self.continuations, str) or not self.continuations or not all(self.continuations):
            raise ValueError(f"continuations are {self.continuations!r}: there must be one or more, none of them empty")

    def key(self, identity: Mapping[str, Any]) -> str:
        """Give the SHA-256 of all that the scores depend on."""
        return digest({"scores": _plain(asdict(self)), "model": identity})


@dataclass(frozen=True)
class Usage:
    """Tokens that a completion took.

    Attributes:
        prompt_tokens: of the prompt.
        completion_tokens: that were generated.
        cached_tokens: of the prompt, that were not computed, since the model had them in its cache.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class Completion:
    """What a model said.

    Attributes:
        text: the completion.
        finish_reason: why it ended; None where the model does not tell.
        usage: tokens that it took; None where the model does not tell.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Scores:
    """How likely continuations are.

    Attributes:
        log_probabilities: of each continuation after the prompt, summed over its tokens, in nats.
        tokens: how many tokens each has.
    """

    log_probabilities: tuple[float, ...]
    tokens: tuple[int, ...]


@runtime_checkable
class BatchModel(Protocol):
    """Whatever completes many prompts in one call: an engine on this machine, or a server.

    Attributes:
        identity: what its completions depend on besides the request, as JSON: it is part of the key under which they
            are kept.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """Say which model it is, down to its weights where that is known."""
        ...

    def complete(
        self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Completion | Exception], object]
    ) -> None:
        """Complete prompts, in any order.

        Args:
            requests: what is asked.
            on_result: is told, in the calling thread and as soon as it is there, what became of each request, by its
                place: a completion, or why there is none. One that fails leaves the others alone.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest], on_result: Callable[[int, Scores | Exception], object]) -> None:
        """Give the log probabilities of continuations, in the same way."""
        ...


def digest(content: Any) -> str:
    """Give the SHA-256 of JSON, the same for equal content."""
    written = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(written.encode()).hexdigest()


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    prompt = content["prompt"]
    return {**content, "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt]}


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError("a prompt is empty: there must be a text to go on with")
        return
    if not isinstance(prompt, Sequence) or not all(isinstance(message, Mapping) for message in prompt) or not prompt:
        raise ValueError(
            f"a prompt is {str(prompt)[:80]!r}: it must be a text to be continued, or the messages of a conversation"
        )
