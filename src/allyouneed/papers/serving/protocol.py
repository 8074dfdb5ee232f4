"""What OpenAI's API says: requests as they may be, answers and errors as they must be.

Everything that a request may hold is honoured or refused by name; nothing is passed over. What goes beyond the API
(`top_k`, `min_p`, `repetition_penalty`) has the names that other open servers use.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from allyouneed.text import Sampling

from .answers import Piece, Usage, WrittenToken

# Penalties that nothing here computes: they may be said to be none.
_None = Annotated[float, Field(ge=0, le=0)]


def _several(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _parts(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


_Stop = Annotated[str, StringConstraints(min_length=1)]
# One string stands for a list with it in it.
_Stops = Annotated[list[_Stop], Field(max_length=4), BeforeValidator(_several)]


class ApiError(Exception):
    """An error as the API words it.

    Args:
        status: of the HTTP response.
        message: for a person.
        param: the argument that is to blame.
        code: for a program.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What stands in the response."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of requests may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    stop: _Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: _None | None = None
    frequency_penalty: _None | None = None
    # Who asks, for the asker's own records: it changes no answer anywhere.
    user: str | None = None

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(
            1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty or 1.0,
        )

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told with each token; None where not even its own likelihood is."""
        raise NotImplementedError


class TextPart(BaseModel):
    """A part of a message; there are no pictures here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)]

    @property
    def plain(self) -> dict[str, str]:
        """The message as chat templates know it: they have no developers."""
        text = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Asked):
    """A conversation that is to be answered."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def likeliest(self) -> int | None:
        """See `Asked`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Asked):
    """A text, or several, to be continued; texts may be given as tokens."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None

    @property
    def likeliest(self) -> int | None:
        """See `Asked`."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The texts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [self.prompt] if self.prompt else []  # pyright: ignore[reportReturnType]
        return self.prompt  # pyright: ignore[reportReturnType]


class Form:
    """How an answer is written down: chat or text, whole or in pieces.

    Args:
        chat: which kind of request is answered.
        identity: of the answer.
        model: its name.
        created: when it was asked, in seconds since 1970.
    """

    def __init__(self, chat: bool, identity: str, model: str, created: int):
        self.chat = chat
        self._head = {"id": ("chatcmpl-" if chat else "cmpl-") + identity, "created": created, "model": model}

    def whole(self, texts: Sequence[Piece], usage: Usage, with_tokens: bool) -> dict[str, Any]:
        """Write a whole answer; `texts` are in the order of their numbers."""
        choices = []
        for piece in texts:
            choice = self._choice(piece, with_tokens)
            if self.chat:
                message = {"role": "assistant", "content": piece.text, "refusal": None}
                choice = {"index": choice["index"], "message": message} | choice
            choices.append(choice)
        name = "chat.completion" if self.chat else "text_completion"
        return self._head | {"object": name, "choices": choices, "usage": usage_body(usage)}

    def first(self, choice: int) -> dict[str, Any]:
        """Write what comes before a chat's first piece: who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk([{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}])

    def piece(self, piece: Piece, with_tokens: bool) -> dict[str, Any]:
        """Write a piece of a streamed answer."""
        choice = self._choice(piece, with_tokens)
        if self.chat:
            choice = {"index": choice["index"], "delta": {"content": piece.text} if piece.text else {}} | choice
        return self._chunk([choice])

    def last(self, usage: Usage) -> dict[str, Any]:
        """Write what a streamed answer cost."""
        return self._chunk([]) | {"usage": usage_body(usage)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk" if self.chat else "text_completion", "choices": choices}

    def _choice(self, piece: Piece, with_tokens: bool) -> dict[str, Any]:
        reason = piece.reason
        if self.chat:
            tokens = {"content": [_chat_token(token) for token in piece.tokens], "refusal": None}
            return {"index": piece.choice, "logprobs": tokens if with_tokens else None, "finish_reason": reason}
        tokens = _text_tokens(piece.tokens) if with_tokens else None
        return {"index": piece.choice, "text": piece.text, "logprobs": tokens, "finish_reason": reason}


def usage_body(usage: Usage) -> dict[str, int]:
    """Write what an answer cost."""
    total = usage.prompt + usage.written
    return {"prompt_tokens": usage.prompt, "completion_tokens": usage.written, "total_tokens": total}


def event(body: Mapping[str, Any] | str) -> bytes:
    """Write a server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode()


def _chat_token(token: WrittenToken) -> dict[str, Any]:
    likeliest = [_likelihood(*one) for one in token.likeliest]
    return _likelihood(token.text, token.likelihood) | {"top_logprobs": likeliest}


def _likelihood(text: str, likelihood: float) -> dict[str, Any]:
    # Of a part of a character the text does not tell the bytes.
    data = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": likelihood, "bytes": data}


def _text_tokens(tokens: Sequence[WrittenToken]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.likelihood for token in tokens],
        "top_logprobs": [dict(token.likeliest) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
