"""Answers: what the engine tells, turned into text in its thread and handed to the server's."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from allyouneed.text import TextStream, Tokenizer

from .requests import FinishReason, LogProbabilities


@dataclass(frozen=True)
class WrittenToken:
    """A token of an answer, with how likely it was.

    Attributes:
        text: what it stands for; with a replacement character where that is a part of a character.
        offset: where its text begins in the answer, in characters.
        likelihood: its log-probability.
        likeliest: those of the likeliest tokens, with their texts.
    """

    text: str
    offset: int
    likelihood: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """A part of one of the texts.

    Attributes:
        choice: which.
        text: what it adds; may be empty.
        tokens: those whose texts begin in what was added so far and that were not told yet; none where not asked for.
        reason: why the text ends here; None where it goes on.
    """

    choice: int
    text: str
    tokens: tuple[WrittenToken, ...] = ()
    reason: FinishReason | None = None


@dataclass
class Usage:
    """What an answer cost.

    Attributes:
        prompt: tokens of the prompt.
        written: tokens that were written, all texts together.
    """

    prompt: int
    written: int = 0


@dataclass
class _Text:
    """One of the texts, as far as it is written."""

    stream: TextStream
    # The same without an end, for the places of tokens.
    whole: TextStream | None
    given: int = 0
    place: int = 0
    held: list[WrittenToken] = field(default_factory=list)


class Answer:
    """Listens to the engine, and is read by the server: pieces of texts, or an error at the end.

    Args:
        tokenizer: the model's.
        prompt: tokens of all prompts, for the usage.
        choices: how many texts there are.
        stop: strings that end a text.
        with_tokens: whether tokens and their likelihoods are told.

    Attributes:
        usage: what the answer cost so far.
        numbers: of the engine's requests.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt: int,
        choices: int = 1,
        stop: Collection[str] = (),
        with_tokens: bool = False,
    ):
        self.usage = Usage(prompt)
        self.numbers: list[int] = []
        self._tokenizer = tokenizer
        self._texts = [
            _Text(TextStream(tokenizer, stop), TextStream(tokenizer) if with_tokens else None) for _ in range(choices)
        ]
        self._open = choices
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def part(self, first: int) -> "AnswerPart":
        """Give the listener to one request of several, whose texts are numbered from `first` on."""
        return AnswerPart(self, first)

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """Hear from the engine's thread that a prompt is computed."""

    def token(self, choice: int, token: int, likelihood: LogProbabilities | None) -> object:
        """Take a token from the engine's thread; True where a stop string is complete."""
        self.usage.written += 1
        text = self._texts[choice]
        if text.whole is not None and likelihood is not None:
            text.held.append(self._written(token, text.place, likelihood))
            text.place += len(text.whole.add(token))
        piece = text.stream.add(token)
        if piece and not text.stream.stopped:
            self._put(self._piece(choice, piece, None))
        elif text.stream.stopped:
            self._put(self._piece(choice, piece, "stop"))
        return text.stream.stopped

    def ended(self, choice: int, reason: FinishReason) -> None:
        """Hear from the engine's thread that a text has ended."""
        stream = self._texts[choice].stream
        if not stream.stopped:
            rest = stream.finish()
            self._put(self._piece(choice, rest, "stop" if stream.stopped else reason))

    def failed(self, error: Exception) -> None:
        """Hear from the engine's thread that nothing more comes."""
        self._put(error)

    async def pieces(self) -> list[Piece]:
        """Wait for what comes next, and give all of it that is there; nothing once all texts have ended.

        Raises:
            Exception: what the request failed of.
        """
        if not self._open:
            return []
        found = [await self._queue.get()]
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        pieces = []
        for one in found:
            if isinstance(one, Exception):
                raise one
            pieces.append(one)
            self._open -= one.reason is not None
        return pieces

    def _put(self, what: Piece | Exception) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, what)

    def _piece(self, choice: int, added: str, reason: FinishReason | None) -> Piece:
        text = self._texts[choice]
        text.given += len(added)
        count = len(text.held)
        if reason is None or text.stream.stopped:
            # Tokens that begin after the end belong to the stop string.
            count = sum(token.offset < text.given for token in text.held)
        told, text.held = text.held[:count], text.held[count:]
        return Piece(choice, added, tuple(told), reason)

    def _written(self, token: int, offset: int, likelihood: LogProbabilities) -> WrittenToken:
        likeliest = tuple((self._decoded(other), value) for other, value in likelihood.top.items())
        return WrittenToken(self._decoded(token), offset, likelihood.token, likeliest)

    def _decoded(self, token: int) -> str:
        # A model's vocabulary may be larger than its tokenizer's.
        return self._tokenizer.decode([token]) if token < self._tokenizer.vocabulary else ""


@dataclass(frozen=True)
class AnswerPart:
    """The listener to one request of an answer.

    Attributes:
        answer: the whole.
        first: the number of the request's first text in it.
    """

    answer: Answer
    first: int

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """See `Answer.prefilled`."""
        self.answer.prefilled(cached_tokens, logprobs)

    def token(self, choice: int, token: int, likelihood: LogProbabilities | None) -> object:
        """See `Answer.token`."""
        return self.answer.token(self.first + choice, token, likelihood)

    def ended(self, choice: int, reason: FinishReason) -> None:
        """See `Answer.ended`."""
        self.answer.ended(self.first + choice, reason)

    def failed(self, error: Exception) -> None:
        """See `Answer.failed`."""
        self.answer.failed(error)
