"""Answers as OpenAI's API words them: whole, and in chunks of a stream."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from allyouneed.text.tool_calls import ToolCallDelta, ToolCallFormat, ToolCallParser

from .answers import AnsweredToken, Piece, Usage
from .token_texts import TokenTexts


class CompletionFormatter:
    """Words the answers to completion requests.

    Args:
        model: its name.
        created: when it was asked, in seconds since 1970.
        texts: of tokens; needed where log probabilities are given, and they are given where it is not None.
    """

    _prefix, _object, _chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: str, created: int, texts: TokenTexts | None):
        self._head = {"id": self._prefix + uuid.uuid4().hex, "created": created, "model": model}
        self._texts = texts

    def whole(self, sequences: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """Word a whole answer; a piece is all of a sequence."""
        choices = [self._choice(piece) for piece in sequences]
        return self._head | {"object": self._object, "choices": choices, "usage": usage_body(usage)}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Word a piece of a streamed answer."""
        return [self._chunk(self._choice(piece))]

    def last(self, usage: Usage) -> dict[str, Any]:
        """Word what a streamed answer cost."""
        return self._chunk() | {"usage": usage_body(usage)}

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return self._head | {"object": self._chunk_object, "choices": list(choices)}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = None if self._texts is None else completion_logprobs(piece.tokens, self._texts)
        return {"index": piece.choice, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.reason}


class ChatFormatter(CompletionFormatter):
    """Words the answers to chat requests.

    Args:
        model: its name.
        created: when it was asked, in seconds since 1970.
        texts: see `CompletionFormatter`.
        tool_calls: how the model writes calls of tools; its text is all text where None.
        tools: the names of those that it may call.
    """

    _prefix, _object, _chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        created: int,
        texts: TokenTexts | None,
        tool_calls: ToolCallFormat | None = None,
        tools: Sequence[str] = (),
    ):
        super().__init__(model, created, texts)
        self._tool_calls = tool_calls
        self._tools = tools
        self._parsers: dict[int, ToolCallParser] = {}
        self._started: set[int] = set()

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Word a piece of a streamed answer; before a sequence's first comes who speaks."""
        deltas: list[dict[str, Any]] = []
        if piece.choice not in self._started:
            self._started.add(piece.choice)
            deltas.append({"role": "assistant", "content": "", "refusal": None})
        parts = self._parts(piece)
        deltas += [_tool_call_delta(part) if isinstance(part, ToolCallDelta) else {"content": part} for part in parts]
        if piece.reason is not None or (piece.tokens and not parts):
            # A last piece of text takes the end along.
            deltas += [] if parts and isinstance(parts[-1], str) else [{}]
        chunks: list[dict[str, Any]] = [
            {"index": piece.choice, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if chunks:
            chunks[-1] |= {"logprobs": self._logprobs(piece), "finish_reason": self._reason(piece)}
        return [self._chunk(chunk) for chunk in chunks]

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
        if self._tool_calls is not None:
            text, calls = "", []
            for part in self._parts(piece):
                if isinstance(part, str):
                    text += part
                elif part.name is not None:
                    calls.append(
                        {"id": _call_id(), "type": "function", "function": {"name": part.name, "arguments": ""}}
                    )
                else:
                    calls[part.index]["function"]["arguments"] += part.arguments
            message["content"] = text if text or not calls else None
            if calls:
                message["tool_calls"] = calls
        return {
            "index": piece.choice,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": self._reason(piece),
        }

    def _parts(self, piece: Piece) -> list[str | ToolCallDelta]:
        """Split what a piece adds into text and parts of calls."""
        if self._tool_calls is None:
            return [piece.text] if piece.text else []
        if piece.choice not in self._parsers:
            self._parsers[piece.choice] = ToolCallParser(self._tool_calls, self._tools)
        parser = self._parsers[piece.choice]
        parts = list(parser.add(piece.text))
        if piece.reason is not None and (rest := parser.finish()):
            parts.append(rest)
        return parts

    def _reason(self, piece: Piece) -> str | None:
        called = piece.choice in self._parsers and self._parsers[piece.choice].calls
        return "tool_calls" if called and piece.reason == "stop" else piece.reason

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self._texts is None:
            return None
        return {"content": [chat_logprobs(token, self._texts) for token in piece.tokens], "refusal": None}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Word what an answer cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def event(body: Mapping[str, Any] | str) -> bytes:
    """Write a server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode()


def chat_logprobs(token: AnsweredToken, texts: TokenTexts) -> dict[str, Any]:
    """Word a token's log probabilities as chats have them."""
    assert token.logprobs is not None

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text_of(token), "logprob": logprob, "bytes": list(texts.bytes_of(token))}

    top = [one(*other) for other in token.logprobs.top.items()]
    return one(token.token, token.logprobs.token) | {"top_logprobs": top}


def completion_logprobs(tokens: Sequence[AnsweredToken], texts: TokenTexts) -> dict[str, Any]:
    """Word the log probabilities of tokens as completions have them.

    `top_logprobs` are by text, and a token is among its own. Two tokens of one text do not overwrite each other: one
    of them stands there under its id.
    """
    top: list[dict[str, float] | None] = []
    for token in tokens:
        if token.logprobs is None:
            top.append(None)
            continue
        logprobs = {**token.logprobs.top}
        logprobs.setdefault(token.token, token.logprobs.token)
        names = texts.names_of(token.token, list(logprobs))
        top.append({names[other]: logprob for other, logprob in logprobs.items()})
    return {
        "tokens": [texts.text_of(token.token) for token in tokens],
        "token_logprobs": [None if token.logprobs is None else token.logprobs.token for token in tokens],
        "top_logprobs": top,
        "text_offset": [token.offset for token in tokens],
    }


def _tool_call_delta(part: ToolCallDelta) -> dict[str, Any]:
    call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.arguments}}
    if part.name is not None:
        call |= {"id": _call_id(), "type": "function", "function": {"name": part.name, "arguments": ""}}
    return {"tool_calls": [call]}


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
