"""Between the API and the engine: prompts are made of what is asked, within what the model reads, and errors worded."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from allyouneed.text import ChatTemplate, Tokenizer
from allyouneed.text.constraints import Constraint, ConstraintError, Grammar
from allyouneed.text.tool_calls import ToolCallFormat

from .answers import Answer, AnswerOptions, Prompt
from .api_chat import ChatRequest
from .api_errors import ApiError
from .api_requests import CompletionRequest
from .engine import Engine
from .requests import Listener, QueueFullError, RefusedError, Request, StoppedError, TimeLimitError
from .token_texts import TokenTexts

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
        stop: tokens that end a sequence.
        seconds: the longest that a request may take.

    Attributes:
        texts: of single tokens.
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
        # Who listens to what the engine tells, besides the answer: see `metrics`.
        self.observe: Callable[[Listener], Listener] = lambda listener: listener
        self.texts = TokenTexts(tokenizer)
        self._tokenizer = tokenizer
        self._template = template
        self._stop = {*stop, *(() if template is None else template.end_tokens())}
        self._seconds = seconds

    @property
    def context_length(self) -> int:
        """How many tokens a prompt and its answer may have together."""
        cache = self.engine.pool.blocks * self.engine.pool.size
        context = self.engine.model.context
        return cache if context is None else min(cache, context)

    @cached_property
    def tool_calls(self) -> ToolCallFormat:
        """How the model writes calls of tools.

        Raises:
            ValueError: it does not, or not so that they could be read.
        """
        assert self._template is not None
        return ToolCallFormat.of(self._template)

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
        self._check_tokens([int(token) for token in asked.logit_bias or ()], "logit_bias")
        if asked.include_usage and not asked.stream:
            raise ApiError(400, "stream_options are for streams: set stream to true", param="stream_options")
        # A long text takes a while, in which others are to be heard, and so does a schema.
        prompts = await asyncio.to_thread(self._prompts, asked)
        constraint = await asyncio.to_thread(self._constraint, asked)
        new_tokens = [self._new_tokens(asked, len(prompt.tokens)) for prompt in prompts]
        options = self._options(asked, constraint)
        choices = max(asked.n or 1, (isinstance(asked, CompletionRequest) and asked.best_of) or 1)
        if choices > (most := self.engine.scheduler.limits.max_num_sequences):
            name = "n" if choices == asked.n else "best_of"
            raise ApiError(400, f"{name} {choices} is more than the {most} sequences computed at once", param=name)
        answer = Answer(self._tokenizer, prompts, choices=choices, options=options)
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        try:
            for place, (part, most) in enumerate(zip(answer.parts, new_tokens, strict=True)):
                request = Request(
                    part.prompt.tokens,
                    most,
                    self.observe(part),
                    asked.sampling,
                    self._stop_tokens(asked) - {*options.end_tokens},
                    (seed + place) % 2**63,
                    choices,
                    constraint=constraint,
                    seconds=self._seconds,
                    min_new_tokens=asked.min_tokens or 0,
                    **self._logprobs(asked, choices),
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

    def _stop_tokens(self, asked: ChatRequest | CompletionRequest) -> set[int]:
        self._check_tokens(asked.stop_token_ids or (), "stop_token_ids")
        return {*(asked.stop_token_ids or ()), *(() if asked.ignore_eos else self._stop)}

    def _check_tokens(self, tokens: Collection[int], param: str) -> None:
        vocabulary = self.engine.model.vocabulary
        outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if outside is not None:
            message = f"token {outside} is not in the vocabulary: ids are 0 to {vocabulary - 1}"
            raise ApiError(400, message, param=param)

    def _options(self, asked: ChatRequest | CompletionRequest, constraint: Constraint | None) -> AnswerOptions:
        with_logprobs = asked.count_of_top_logprobs is not None
        # Whoever counts the tokens of a completion by its log probabilities counts the one that ended it; where a
        # grammar decides on the end, the engine must know what ends a sequence.
        end_tokens = with_logprobs and isinstance(asked, CompletionRequest) and constraint is None
        return AnswerOptions(
            asked.stop or (),
            with_logprobs,
            self._stop_tokens(asked) if end_tokens and not asked.min_tokens else (),
            {*self._tokenizer.special_tokens.values()} if asked.skip_special_tokens else (),
            echo=isinstance(asked, CompletionRequest) and bool(asked.echo),
            partial=not asked.stream,
        )

    def _logprobs(self, asked: ChatRequest | CompletionRequest, choices: int) -> dict[str, int | None]:
        count = asked.count_of_top_logprobs
        echoed = isinstance(asked, CompletionRequest) and asked.echo
        return {
            # The best of several sequences is found by them.
            "logprobs": 0 if count is None and choices > (asked.n or 1) else count,
            "prompt_logprobs": (count or 0) if echoed and (count is not None or asked.max_tokens == 0) else None,
        }

    def _prompts(self, asked: ChatRequest | CompletionRequest) -> list[Prompt]:
        if isinstance(asked, ChatRequest):
            return [Prompt(self._conversation(asked))]
        prompts = []
        # Without the special tokens a text is what its own tokens are.
        encode = self._tokenizer.encode if asked.add_special_tokens is False else self._tokenizer.encode_prompt
        for given in asked.prompts:
            if not isinstance(given, str):
                self._check_tokens(given, "prompt")
            try:
                prompts.append(Prompt(encode(given), given) if isinstance(given, str) else Prompt(given))
            except ValueError as error:
                raise ApiError(400, str(error), param="prompt") from error
        if not 0 < len(prompts) <= _MOST_PROMPTS or not all(prompt.tokens for prompt in prompts):
            lengths = [len(prompt.tokens) for prompt in prompts[:5]]
            message = (
                f"{len(prompts)} prompts of {lengths} tokens: there must be 1 to {_MOST_PROMPTS}, and each needs at "
                "least one token"
            )
            raise ApiError(400, message, param="prompt")
        return prompts

    def _conversation(self, asked: ChatRequest) -> Sequence[int]:
        if self._template is None:
            message = f"{self.name} has no chat template: it was not made for conversations. Ask for completions"
            raise ApiError(400, message, param="messages")
        tools = [tool.for_template for tool in asked.callable_tools]
        if tools and not self._template.takes_tools:
            message = "tools are not supported by this model: its chat template has no place for them"
            raise ApiError(400, message, param="tools", code="unsupported_value")
        encode = partial(
            self._template.encode,
            [message.for_template for message in asked.messages],
            answering=asked.add_generation_prompt is not False,
            continuing=bool(asked.continue_final_message),
            tools=tools,
        )
        try:
            return encode(variables=asked.chat_template_kwargs)
        except ValueError as error:
            param = "messages"
            if asked.chat_template_kwargs:
                with contextlib.suppress(ValueError):
                    encode()
                    param = "chat_template_kwargs"
            raise ApiError(400, str(error), param=param) from error

    def _constraint(self, asked: ChatRequest | CompletionRequest) -> Constraint | None:
        """Make what keeps an answer to its form.

        Raises:
            ApiError: a schema that cannot be followed, or what does not go together with one.
        """
        schema = asked.schema_to_follow
        tools = asked.callable_tools if isinstance(asked, ChatRequest) else ()
        param = "tools" if tools else "response_format"
        if schema is None and not tools:
            return None
        if schema is not None and tools:
            message = "response_format and tools together are not supported: let a tool take the answer"
            raise ApiError(400, message, param="response_format")
        for name in ("ignore_eos", "min_tokens"):
            if getattr(asked, name):
                message = f"{name} and {param} together are not supported: their form says where answers end"
                raise ApiError(400, message, param=name)
        try:
            if tools:
                assert isinstance(asked, ChatRequest)
                schemas: Mapping[str, Any] = {tool.function.name: tool.parameters for tool in tools}
                several = asked.parallel_tool_calls is not False
                grammar = self.tool_calls.grammar(schemas, must_call=asked.must_call, several=several)
            else:
                grammar = Grammar.json_schema(schema)
            return grammar.constraint(self._tokenizer)
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param=param, code="unsupported_value") from error

    def _new_tokens(self, asked: ChatRequest | CompletionRequest, prompt: int) -> int:
        """Say how many tokens may be generated after a prompt of so many: what is asked for, as far as there is room.

        Raises:
            ApiError: the prompt is longer than what is read here.
        """
        chat = isinstance(asked, ChatRequest)
        most = asked.max_tokens if asked.max_tokens is not None or not chat else asked.max_completion_tokens
        room = self.context_length - prompt
        if room < (most != 0):
            raise ApiError(
                400,
                f"this model's maximum context length is {self.context_length} tokens, answers included, and the "
                f"prompt has {prompt}: shorten it",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        if most is None:
            most = room if chat else _COMPLETION_TOKENS
        most = min(most, room)
        if asked.min_tokens is not None and asked.min_tokens > most:
            raise ApiError(
                400, f"min_tokens {asked.min_tokens} are more than the {most} that there may be", param="min_tokens"
            )
        return most


def worded(error: Exception) -> ApiError:
    """Say in the API's words of what a request failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"retry-after": "1"})
    if isinstance(error, RefusedError | ConstraintError):
        return ApiError(400, str(error))
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), code="stopping", headers={"retry-after": "5"})
    if isinstance(error, TimeLimitError):
        return ApiError(504, str(error), code="time_limit")
    return ApiError(500, f"the model failed: {type(error).__name__}")
