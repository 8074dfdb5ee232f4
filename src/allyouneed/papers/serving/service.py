"""Between the API and the engine: prompts are made of what is asked, within what the model reads, and errors worded."""

import asyncio
import secrets
from collections.abc import Collection, Sequence

from allyouneed.text import ChatTemplate, Tokenizer

from .answers import Answer
from .engine import Engine
from .protocol import ApiError, ChatRequest, CompletionRequest
from .requests import QueueFullError, RefusedError, Request, StoppedError, TimeLimitError

# What the API says for completions; a chat's answer may be as long as there is room.
_COMPLETION_TOKENS = 16
# Each prompt of a request takes a place in the queue.
_MOST_PROMPTS = 64


class Service:
    """A model that answers requests of the API.

    Args:
        engine: computes.
        tokenizer: the model's.
        name: by which requests ask for the model.
        template: of conversations; none can be answered where None.
        stop: tokens that end a text.
        seconds: the longest that a request may take.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        name: str,
        template: ChatTemplate | None = None,
        stop: Collection[int] = (),
        seconds: float = 300.0,
    ):
        self.engine = engine
        self.name = name
        self._tokenizer = tokenizer
        self._template = template
        self._stop = {*stop, *(() if template is None else template.end_tokens())}
        self._seconds = seconds
        cache = engine.pool.blocks * engine.pool.size
        context = engine.model.context
        self._room = cache if context is None else min(cache, context)

    def check_model(self, model: str) -> None:
        """Make sure that the model that is asked for is this one.

        Raises:
            ApiError: it is not.
        """
        if model != self.name:
            message = f"the model {model!r} does not exist here; there is {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def ask(self, asked: ChatRequest | CompletionRequest) -> Answer:
        """Hand a request to the engine.

        Raises:
            ApiError: it cannot be answered, or not now.
        """
        self.check_model(asked.model)
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(400, "stream_options are for streams: set stream to true", param="stream_options")
        # A long text takes a while, in which others are to be heard.
        prompts = await asyncio.to_thread(self._prompts, asked)
        new_tokens = [self._new_tokens(asked, len(prompt)) for prompt in prompts]
        choices = asked.n or 1
        answer = Answer(
            self._tokenizer,
            prompt=sum(map(len, prompts)),
            choices=choices * len(prompts),
            stop=asked.stop or (),
            with_tokens=asked.likeliest is not None,
        )
        seed = secrets.randbits(63) if asked.seed is None else asked.seed % 2**63
        try:
            for place, (prompt, most) in enumerate(zip(prompts, new_tokens, strict=True)):
                request = Request(
                    prompt,
                    most,
                    answer.part(place * choices),
                    asked.sampling,
                    self._stop,
                    seed + place,
                    choices,
                    asked.likeliest,
                    self._seconds,
                )
                answer.numbers.append(self.engine.submit(request))
        except Exception as error:
            self.cancel(answer)
            raise worded(error) from error
        return answer

    def cancel(self, answer: Answer) -> None:
        """Let go of what is not answered yet."""
        for number in answer.numbers:
            self.engine.cancel(number)

    def _prompts(self, asked: ChatRequest | CompletionRequest) -> list[Sequence[int]]:
        prompts: list[Sequence[int]] = []
        if isinstance(asked, ChatRequest):
            if asked.top_logprobs is not None and not asked.logprobs:
                raise ApiError(400, "top_logprobs need logprobs to be true", param="top_logprobs")
            if self._template is None:
                message = f"{self.name} has no chat template: it was not made for conversations. Ask for completions"
                raise ApiError(400, message, param="messages")
            texts = [[message.plain for message in asked.messages]]
            encode, param = self._template.encode, "messages"
        else:
            texts, encode, param = asked.prompts, self._tokenizer.encode, "prompt"
        for text in texts:
            try:
                given = isinstance(text, list) and param == "prompt"
                prompts.append(text if given else encode(text))  # pyright: ignore[reportArgumentType]
            except ValueError as error:
                raise ApiError(400, str(error), param=param) from error
        if not 0 < len(prompts) <= _MOST_PROMPTS or not all(map(len, prompts)):
            message = (
                f"{len(prompts)} prompts of {[len(prompt) for prompt in prompts[:5]]} tokens: there must be 1 to "
                f"{_MOST_PROMPTS}, and each needs at least one token"
            )
            raise ApiError(400, message, param=param)
        return prompts

    def _new_tokens(self, asked: ChatRequest | CompletionRequest, prompt: int) -> int:
        """Say how many tokens may be written after a prompt of so many.

        Raises:
            ApiError: the prompt, or both together, are longer than what is read here.
        """
        chat = isinstance(asked, ChatRequest)
        left = self._room - prompt
        if left < 1:
            raise ApiError(
                400,
                f"the prompt has {prompt} tokens, and at most {self._room} are read here, answers included: shorten it",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        most, param = asked.max_tokens, "max_tokens"
        if chat and asked.max_completion_tokens is not None:
            if most not in (None, asked.max_completion_tokens):
                message = f"max_tokens {most} and max_completion_tokens {asked.max_completion_tokens} differ"
                raise ApiError(400, message, param="max_tokens")
            most, param = asked.max_completion_tokens, "max_completion_tokens"
        if most is None:
            return left if chat else min(left, _COMPLETION_TOKENS)
        if most > left:
            message = f"{param} {most} is too large: beside a prompt of {prompt} tokens there is room for {left}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return most


def worded(error: Exception) -> ApiError:
    """Say in the API's words of what a request failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"retry-after": "1"})
    if isinstance(error, RefusedError):
        return ApiError(400, str(error))
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), code="stopping", headers={"retry-after": "5"})
    if isinstance(error, TimeLimitError):
        return ApiError(504, str(error), code="time_limit")
    return ApiError(500, f"the model failed: {type(error).__name__}")
