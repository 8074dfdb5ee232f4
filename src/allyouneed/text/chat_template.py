"""Chat templates: conversations and tools turned into the tokens of a prompt, and what is said in them kept as text."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .bounded_templates import BoundedEnvironment
from .tokenizers import Tokenizer

Message = Mapping[str, Any]
"""A turn of a conversation: strings under `role`, such as system, user or assistant, and under `content`; under other
keys what a template knows, such as the assistant's `tool_calls`."""

# Keys by which templates reach into tools and calls; they are left as they are.
_STRUCTURE = {"type", "function", "id", "index", "name", "description", "arguments", "parameters", "return"}
_STRUCTURE |= {"properties", "required", "items", "enum", "default", "anyOf", "additionalProperties"}
# What templates are given besides their variables.
_GIVEN = ("messages", "tools", "add_generation_prompt")


class ChatTemplate:
    """A Jinja template that turns a conversation into the text of a prompt, and that text into tokens.

    The template's own special tokens become tokens. What is said is data: a special token's name inside a message is
    encoded as the text that it is. Templates run in a sandbox that can change nothing outside it, and
    within bounds of length, turns and size (`bounded_templates`).

    Args:
        template: the source, as `tokenizer_config.json` and GGUF files have it.
        tokenizer: encodes; its special tokens are those that the template may write.
        variables: what the template may use besides the messages and the names of special tokens by their roles, such
            as `bos_token`, which are the tokenizer's.

    Raises:
        ValueError: a template with a mistake in its syntax, or one that is too long.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, variables: Mapping[str, str] | None = None):
        self._environment = BoundedEnvironment()
        self._template = self._environment.prepared(template)
        self._source = template
        code = (word for _, kind, word in self._environment.lex(template) if kind in ("name", "string"))
        self._words = {word.strip("'\"") for word in code}
        self._tokenizer = tokenizer
        self._variables = {**tokenizer.special_tokens_map, **(variables or {})}
        self._special = dict(tokenizer.special_tokens)
        # The longest first, since one name may begin another.
        names = sorted(self._special, key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    @property
    def source(self) -> str:
        """The template as it was given."""
        return self._source

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return "tools" in self._words

    def encode(
        self,
        messages: Sequence[Message],
        *,
        answering: bool = True,
        continuing: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Give the tokens of a conversation.

        Args:
            messages: oldest first.
            answering: whether the beginning of the assistant's next message follows.
            continuing: whether the last message stays open, to be gone on with; then nothing follows it.
            tools: what the model may call, each as OpenAI's API describes a tool.
            variables: further variables, which the template must know.

        Raises:
            ValueError: no messages, one without role or content, a conversation that the template refuses, or tools,
                calls of tools or variables for which it has no place.
        """
        tokens: list[int] = []
        for part, is_special in self.split(
            messages, answering=answering, continuing=continuing, tools=tools, variables=variables
        ):
            # All before a text is a special token, unless nothing is.
            encode = self._tokenizer.encode_after_special if tokens else self._tokenizer.encode
            tokens += [self._special[part]] if is_special else encode(part)
        return tokens

    def end_tokens(self) -> set[int]:
        """Give the special token that the template writes after an assistant's message: it ends an answer.

        There is none where the template leaves answers out, or writes them otherwise than they are.
        """
        # A word that no template has of its own, and none shortens or changes the case of.
        said = "zq7answer7qz"
        while said in self._source:
            said += "zq"
        conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
        parts = list(self.split(conversation, answering=False))
        after = next((place for place in reversed(range(len(parts))) if said in parts[place][0]), len(parts))
        return {self._special[part] for part, is_special in parts[after + 1 : after + 2] if is_special}

    def split(
        self,
        messages: Sequence[Message],
        *,
        answering: bool = True,
        continuing: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[str, bool]]:
        """Give the rendered text in parts: special tokens that the template, not a message, has written, and the rest.

        Yields:
            Each part, and whether it is a special token.

        Raises:
            ValueError: as `encode`.
        """
        self._check(messages, tools, variables or {})
        said = self._source + "".join(_strings([messages, tools, variables]))
        # One stands inside special tokens' names in messages until the template's own have been found, one at the end
        # of a message that is gone on with.
        mark, end = _unused(said)
        guarded = [
            {key: text if key == "role" else self._guarded(text, mark) for key, text in message.items()}
            for message in messages
        ]
        if continuing:
            guarded[-1]["content"] += end
        given = {"messages": guarded, "add_generation_prompt": answering and not continuing}
        if tools:
            given["tools"] = self._guarded(tools, mark)
        known = {**given, **self._variables, **self._guarded(variables or {}, mark)}
        text = self._environment.rendered(self._template, known)
        if continuing:
            text, found, _ = text.rpartition(end)
            if not found:
                raise ValueError("the chat template leaves the last message out: it cannot be gone on with")
        pieces = self._names.split(text) if self._names else [text]
        for place, piece in enumerate(pieces):
            if piece:
                # In JSON of ASCII the mark is spelled out.
                yield (piece, True) if place % 2 else (piece.replace(mark, "").replace(_escaped(mark), ""), False)

    def _check(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> None:
        if len(messages) == 0:
            raise ValueError("there are no messages: a conversation needs at least one")
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise ValueError(f"message {number} is {message!r:.40}: it must have a role and content, by name")
            for key in ("role", "content"):
                if not isinstance(message.get(key), str):
                    raise ValueError(f"message {number} has the {key} {message.get(key)!r}: it must be a string")
            if self._names is not None and (name := self._names.search(message["role"])):
                raise ValueError(f"message {number} has the special token {name[0]!r} in its role")
            held = {"tool_calls", "reasoning_content"} & message.keys() | ({"tool"} & {message["role"]})
            missing = sorted(held - self._words)
            if missing:
                raise ValueError(
                    f"message {number} has {missing[0]}, for which this model's chat template has no place"
                )
        if tools and not self.takes_tools:
            raise ValueError("tools are not supported by this model: its chat template has no place for them")
        unknown = [name for name in variables if name not in self._words or name in _GIVEN]
        if unknown:
            raise ValueError(f"this model's chat template has no variable {unknown[0]!r} that could be set")

    def _guarded(self, value: Any, mark: str) -> Any:
        """Make sure that no special token's name stands in any string of a value."""
        if isinstance(value, str):
            return self._guarded_text(value, mark)
        if isinstance(value, Mapping):
            return {
                key if key in _STRUCTURE else self._guarded(key, mark): self._guarded(held, mark)
                for key, held in value.items()
            }
        return [self._guarded(held, mark) for held in value] if isinstance(value, Sequence) else value

    def _guarded_text(self, text: str, mark: str) -> str:
        if self._names is None:
            return text
        text = self._names.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        # Names that a message and the template would only form together.
        if any(text.endswith(name[:count]) for name in self._special for count in range(1, len(name))):
            text += mark
        if any(text.startswith(name[count:]) for name in self._special for count in range(1, len(name))):
            text = mark + text
        return text


def _strings(value: Any) -> Iterator[str]:
    """Give all strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from (*_strings(key), *_strings(held))
    elif isinstance(value, Sequence):
        for held in value:
            yield from _strings(held)


def _unused(said: str) -> tuple[str, str]:
    """Give two characters for private use that do not stand in a text, spelled out as little as written."""
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in said and _escaped(chr(code)) not in said)
    return next(free), next(free)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]
