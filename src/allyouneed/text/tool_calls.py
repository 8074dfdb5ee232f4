"""Calls of tools: how a chat template writes them, a grammar of them, and the calls read from a model's text."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .chat_template import ChatTemplate
from .constraints import Grammar
from .schemas import JSON_OPTIONS

_NAME, _ARGUMENTS = "probe_name", {"probe_key": "probe_value"}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCallFormat:
    r"""How a model writes calls of tools: `head`, the name in quotes, `middle`, the arguments in JSON, `tail`.

    Attributes:
        head: what stands before the name, such as `<tool_call>\n{"name": `.
        middle: what stands between the name and the arguments.
        tail: what stands after the arguments.
        separator: what stands between two calls; None where a message holds one call only.
    """

    head: str
    middle: str
    tail: str
    separator: str | None

    @classmethod
    def of(cls, template: ChatTemplate) -> "ToolCallFormat":
        """Read off a chat template how it writes calls.

        Raises:
            ValueError: it has no place for tools or for calls, or writes calls in another form.
        """
        if not template.takes_tools:
            raise ValueError("tools are not supported by this model: its chat template has no place for them")
        name, arguments = json.dumps(_NAME), json.dumps(_ARGUMENTS)
        one = _written(template, 1)
        head, found, rest = one.partition(name)
        middle, found_too, tail = rest.partition(arguments)
        if not (head.strip() and found and found_too):
            raise ValueError(
                "tools are not supported with this model: its chat template writes calls in a form not read here"
            )
        try:
            two = _written(template, 2)
        except ValueError:
            return cls(head, middle, tail, None)
        separator = two.removeprefix(one).removesuffix(one)
        return cls(head, middle, tail, separator if two == one + separator + one else None)

    @property
    def marker(self) -> str:
        """What begins a call and nothing else, such as `<tool_call>`."""
        return self.head.partition("{")[0].strip() or self.head

    def bare(self, name: str) -> str | None:
        """Give how a call begins without its marker, as small models write it; None where calls have no marker."""
        _, found, rest = self.head.partition("{")
        return "{" + rest + json.dumps(name) + self.middle if found and self.marker != self.head else None

    def grammar(
        self, schemas: Mapping[str, Mapping[str, Any]], *, must_call: bool = False, several: bool = True
    ) -> Grammar:
        """Give a grammar of answers: text, calls, or text and then calls.

        Args:
            schemas: of the arguments of each tool, by its name.
            must_call: whether there must be a call, and nothing before it.
            several: whether there may be more calls than one.

        Raises:
            ValueError: a schema that cannot be followed, as `Grammar.json_schema`.
        """
        for schema in schemas.values():
            # Says what is wrong with this one.
            Grammar.json_schema(schema)
        rules = [
            f"call_{number}: {_literal(json.dumps(name) + self.middle)} arguments_{number} {_literal(self.tail)}\n"
            f"arguments_{number}: %json {json.dumps({**schema, 'x-guidance': {**JSON_OPTIONS}})}"
            for number, (name, schema) in enumerate(schemas.items())
        ]
        call = "(" + " | ".join(f"call_{number}" for number in range(len(schemas))) + ")"
        more = ""
        if several and self.separator is not None:
            more = f" ({_literal(self.separator + self.head)} {call})*"
        if must_call:
            return Grammar.lark("\n".join([f"start: {_literal(self.head)} {call}{more}", *rules]))
        # From here on a text is a call: no other use of its marker is allowed.
        before, marker, after = self.head.partition(self.marker)
        rules += ["TEXT: /(.|\\n)*/", f"until_call[lazy]: TEXT {_literal(before + marker)}"]
        rest = f" {_literal(after)}" if after else ""
        starts = ["TEXT", f"until_call{rest} {call}{more}"]
        for number, name in enumerate(schemas):
            if (bare := self.bare(name)) is not None:
                rules.append(f"bare_{number}[lazy]: {_literal(bare)}")
                starts.append(f'bare_{number} arguments_{number} "}}"')
        return Grammar.lark("\n".join([f"start: {' | '.join(starts)}", *rules]))


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a call as it comes: its name, once, and then its arguments.

    Attributes:
        index: which of the message's calls.
        name: of the tool, where the call begins.
        arguments: what is added to them.
    """

    index: int
    name: str | None = None
    arguments: str = ""


class ToolCallParser:
    """Splits an answer, as it comes in pieces, into text and calls of tools.

    White space between text and calls belongs to neither. An answer that begins with a call of a known tool, but
    without the marker, is one call.

    Args:
        form: how calls are written.
        names: of the tools.

    Attributes:
        calls: how many have begun.
    """

    def __init__(self, form: ToolCallFormat, names: Iterable[str] = ()):
        self.calls = 0
        # Beginnings of calls without a marker, while nothing else has come.
        self._bare = {bare: name for name in names if (bare := form.bare(name)) is not None}
        self._form = form
        self._held = ""
        self._arguments: _ObjectScanner | None = None

    def add(self, piece: str) -> Iterator[str | ToolCallDelta]:
        """Take in a piece, and give the text and the parts of calls that have become certain."""
        self._held += piece
        if self._bare:
            if any(bare.startswith(self._held) and bare != self._held for bare in self._bare):
                return
            if (begun := self._begun_bare()) is not None:
                yield begun
        while True:
            if self._arguments is None:
                if text := self._text():
                    yield text
                begun = self._begun()
                if begun is None:
                    return
                yield begun
            if not self._held:
                return
            yield self._further()

    def finish(self) -> str:
        """Give the text that was held back; a call that was cut off before its name was known is no text."""
        rest, self._held = self._held, ""
        return "" if self.calls or rest.startswith(self._form.head) else rest

    def _text(self) -> str:
        """Take what stands before a call, or before what may be the beginning of one."""
        start = self._held.find(self._form.head)
        text = self._held[: start if start >= 0 else len(self._held) - _undecided(self._held, self._form.head)]
        self._held = self._held[len(text) :]
        if self.calls:
            return ""
        return text if start < 0 else text.rstrip()

    def _begun(self) -> ToolCallDelta | None:
        """Take the beginning of a call, up to its arguments, where it is there."""
        if not self._held.startswith(self._form.head):
            return None
        after = self._held[len(self._form.head) :]
        try:
            name, end = _DECODER.raw_decode(after)
        except ValueError:
            return None
        end += len(self._form.middle)
        if len(after) < end:
            return None
        self._held = after[end:]
        self._arguments = _ObjectScanner()
        self.calls += 1
        return ToolCallDelta(self.calls - 1, name)

    def _begun_bare(self) -> ToolCallDelta | None:
        """Take the beginning of a call without a marker, where the answer has one; it is looked for once."""
        found = next((bare for bare in self._bare if self._held.startswith(bare)), None)
        name = None if found is None else self._bare[found]
        self._bare = {}
        if found is None:
            return None
        self._held = self._held[len(found) :]
        self._arguments = _ObjectScanner()
        self.calls += 1
        return ToolCallDelta(0, name)

    def _further(self) -> ToolCallDelta:
        assert self._arguments is not None
        count = self._arguments.count(self._held)
        added, self._held = self._held[:count], self._held[count:]
        if self._arguments.complete:
            self._arguments = None
        return ToolCallDelta(self.calls - 1, None, added)


class _ObjectScanner:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.complete = False
        self._depth = 0
        self._in_string = self._escaped = False

    def count(self, text: str) -> int:
        """Count the characters that belong to the object."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return place + 1
        return len(text)


def _written(template: ChatTemplate, calls: int) -> str:
    """Give what a template writes for a message that consists of so many calls."""
    question = {"role": "user", "content": "question"}
    parameters = {"type": "object", "properties": {key: {"type": "string"} for key in _ARGUMENTS}}
    tools = [{"type": "function", "function": {"name": _NAME, "description": "probe", "parameters": parameters}}]
    call = {"type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}, "id": "call00000"}
    answer = {"role": "assistant", "content": "", "tool_calls": [call] * calls}
    before = "".join(part for part, _ in template.split([question], tools=tools))
    parts = list(template.split([question, answer], answering=False, tools=tools))
    if not "".join(part for part, _ in parts).startswith(before):
        raise ValueError(
            "tools are not supported with this model: its chat template writes calls elsewhere than in an answer"
        )
    text, place = "", 0
    for part, is_special in parts:
        if place >= len(before) and is_special:
            break
        text += part[max(0, len(before) - place) :]
        place += len(part)
    return text


def _literal(text: str) -> str:
    return json.dumps(text)


def _undecided(text: str, head: str) -> int:
    """Count the characters at the end of a text that may begin a call, and the white space before them."""
    begun = next((count for count in range(min(len(text), len(head) - 1), 0, -1) if text.endswith(head[:count])), 0)
    return len(text) - len(text[: len(text) - begun].rstrip())
