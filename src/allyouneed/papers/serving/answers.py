"""Answers: what the engine tells, turned into text in its thread and handed to the server's."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from allyouneed.text import TextStream, Tokenizer

from .requests import FinishReason, LogProbabilities, TimeLimitError


@dataclass(frozen=True)
class AnsweredToken:
    """A token of an answer, or of a prompt that is echoed.

    Attributes:
        token: its id.
        offset: where its text begins in the answer, in characters.
        logprobs: its log probability, and those of the likeliest; None for a prompt's first token, which has none.
    """

    token: int
    offset: int
    logprobs: LogProbabilities | None


@dataclass(frozen=True)
class Piece:
    """A part of one of the sequences.

    Attributes:
        choice: which.
        text: what it adds; may be empty.
        tokens: those whose texts begin in what was added so far and that were not given yet; none where not asked for.
        reason: why the sequence ends here; None where it goes on.
    """

    choice: int
    text: str
    tokens: tuple[AnsweredToken, ...] = ()
    reason: FinishReason | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt of a request.

    Attributes:
        tokens: at least one.
        text: as it was given; that of the tokens where None.
    """

    tokens: Sequence[int]
    text: str | None = None


@dataclass
class Usage:
    """What an answer cost.

    Attributes:
        prompt_tokens: of all prompts.
        completion_tokens: that were generated, in all sequences together.
        cached_tokens: tokens of the prompts that were in the cache.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class AnswerOptions:
    """What an answer holds.

    Attributes:
        stop: strings that end a sequence.
        with_logprobs: whether tokens and their log probabilities are given.
        end_tokens: end a sequence as well, but are given among the tokens; those that the engine knows are not.
        hidden_tokens: are no part of the text.
        echo: whether prompts are a part of it.
        partial: whether what there is at the time limit is given, as if it had its full length.
    """

    stop: Collection[str] = ()
    with_logprobs: bool = False
    end_tokens: Collection[int] = ()
    hidden_tokens: Collection[int] = ()
    echo: bool = False
    partial: bool = False


@dataclass
class _Sequence:
    """One of the sequences, as far as it is generated."""

    stream: TextStream
    # The same without an end, for the places of tokens.
    whole: TextStream
    given: int = 0
    place: int = 0
    held: list[AnsweredToken] = field(default_factory=list)
    ended: bool = False
    generated: int = 0
    logprob: float = 0.0


class Answer:
    """Listens to the engine, and is read by the server: pieces of sequences, or an error at the end.

    Args:
        tokenizer: the model's.
        prompts: what is answered, each by a request to the engine.
        choices: how many sequences each prompt has.
        options: what the answer holds.

    Attributes:
        usage: what the answer cost so far.
        numbers: of the engine's requests.
        parts: the listeners to the engine's requests.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        *,
        choices: int = 1,
        options: AnswerOptions | None = None,
    ):
        self.usage = Usage(sum(len(prompt.tokens) for prompt in prompts))
        self.numbers: list[int] = []
        self._tokenizer = tokenizer
        self._options = options or AnswerOptions()
        self._sequences = [
            _Sequence(
                TextStream(tokenizer, self._options.stop, prompt=prompt.tokens),
                TextStream(tokenizer, prompt=prompt.tokens),
            )
            for prompt in prompts
            for _ in range(choices)
        ]
        self.parts = [
            AnswerPart(self, range(place * choices, (place + 1) * choices), prompt)
            for place, prompt in enumerate(prompts)
        ]
        self._open = len(self._sequences)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def prefilled(self, part: "AnswerPart", cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """Hear from the engine's thread that a prompt is computed."""
        self.usage.cached_tokens += cached_tokens
        if not self._options.echo:
            return
        prompt = part.prompt
        text = prompt.text
        if text is None:
            # A model may know more tokens than its tokenizer: those have no text.
            known = self._tokenizer.vocabulary
            text = self._tokenizer.decode([token for token in prompt.tokens if token < known])
        tokens = ()
        if self._options.with_logprobs:
            tokens = tuple(_prompt_tokens(self._tokenizer, prompt.tokens, text, logprobs))
        for choice in part.choices:
            self._sequences[choice].place = self._sequences[choice].given = len(text)
            self._put(Piece(choice, text, tokens))

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        """Take a token from the engine's thread; True where the sequence ends with it."""
        sequence, options = self._sequences[choice], self._options
        if logprobs is not None:
            sequence.logprob += logprobs.token
            if options.with_logprobs:
                sequence.held.append(AnsweredToken(token, sequence.place, logprobs))
        sequence.generated += 1
        if token in options.end_tokens:
            return True
        self.usage.completion_tokens += 1
        if token in options.hidden_tokens:
            return False
        if options.with_logprobs:
            sequence.place += len(sequence.whole.add(token))
        piece = sequence.stream.add(token)
        if sequence.stream.stopped:
            self._end(choice, piece, "stop")
        elif piece:
            self._put(self._piece(choice, piece, None))
        return sequence.stream.stopped

    def ended(self, choice: int, reason: FinishReason) -> None:
        """Hear from the engine's thread that a sequence has ended."""
        sequence = self._sequences[choice]
        if not sequence.ended:
            rest = sequence.stream.finish()
            self._end(choice, rest, "stop" if sequence.stream.stopped else reason)

    def failed(self, choices: range, error: Exception) -> None:
        """Hear from the engine's thread that nothing more comes of some sequences."""
        if self._options.partial and isinstance(error, TimeLimitError) and self.usage.completion_tokens:
            for choice in choices:
                self.ended(choice, "length")
        else:
            self._put(error)

    async def pieces(self) -> list[Piece]:
        """Wait for what comes next, and give all of it that is there; nothing once all sequences have ended.

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

    def likeliest(self, choices: Sequence[int], count: int) -> list[int]:
        """Give the sequences with the highest log probability a token, the highest first; for `best_of`."""

        def score(choice: int) -> float:
            return self._sequences[choice].logprob / max(1, self._sequences[choice].generated)

        return sorted(choices, key=score, reverse=True)[:count]

    def _put(self, what: Piece | Exception) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, what)

    def _end(self, choice: int, added: str, reason: FinishReason) -> None:
        self._sequences[choice].ended = True
        self._put(self._piece(choice, added, reason))

    def _piece(self, choice: int, added: str, reason: FinishReason | None) -> Piece:
        sequence = self._sequences[choice]
        sequence.given += len(added)
        count = len(sequence.held)
        if reason is None or sequence.stream.stopped:
            # Tokens that begin after the end belong to the stop string.
            count = sum(token.offset < sequence.given for token in sequence.held)
        told, sequence.held = sequence.held[:count], sequence.held[count:]
        return Piece(choice, added, tuple(told), reason)


@dataclass(frozen=True)
class AnswerPart:
    """The listener to one request of an answer.

    Attributes:
        answer: the whole.
        choices: the numbers of the request's sequences in it.
        prompt: the request's.
    """

    answer: Answer
    choices: range
    prompt: Prompt

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """See `Answer.prefilled`."""
        self.answer.prefilled(self, cached_tokens, logprobs)

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        """See `Answer.token`."""
        return self.answer.token(self.choices[choice], token, logprobs)

    def ended(self, choice: int, reason: FinishReason) -> None:
        """See `Answer.ended`."""
        self.answer.ended(self.choices[choice], reason)

    def failed(self, error: Exception) -> None:
        """See `Answer.failed`."""
        self.answer.failed(self.choices, error)


def _prompt_tokens(
    tokenizer: Tokenizer, prompt: Sequence[int], text: str, logprobs: Sequence[LogProbabilities]
) -> list[AnsweredToken]:
    """Give a prompt's tokens with their places in its text; those put before the text begin where it does."""
    stream, place, places = TextStream(tokenizer), 0, []
    for token in prompt:
        places.append(place)
        place += len(stream.add(token))
    before = max(0, place + len(stream.finish()) - len(text))
    return [
        AnsweredToken(token, max(0, place - before), own)
        for token, place, own in zip(prompt, places, (None, *logprobs), strict=True)
    ]
