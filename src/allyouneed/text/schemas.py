"""What of JSON Schema can be followed token by token: what is refused before a schema is compiled, and why."""

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

JSON_OPTIONS: Mapping[str, Any] = {
    # Free white space is where small models get lost: a space, or a line break with its indentation, is enough.
    "whitespace_pattern": r"( |\n[ \t]{0,40})?",
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    # What cannot be followed is refused, not passed over.
    "lenient": False,
    "coerce_one_of": False,
    # Without \u: a key that is escaped could stand for one that has a schema of its own.
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
}
"""How JSON is written down, for llguidance."""

_MAX_CHARACTERS = 100_000
_MAX_DEPTH = 64
# Each may come next, and the compiler follows so many things at once.
_MAX_PROPERTIES = 400
# What JSON that is generated never has more of.
_MAX_COUNT = 1_000_000
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
# Under these keywords stand values, not schemas.
_VALUES = ("const", "enum", "default", "examples")
# States of the automaton that divides by it grow with the divisor.
_MAX_DIVISOR = 10_000
_UNESCAPABLE = {chr(code) for code in range(0x20)} - set("\n\r\b\t\f")


def checked_schema(schema: Any) -> dict[str, Any]:
    """Make sure that a schema can be compiled in bounded time, and that what follows it is valid.

    Returns:
        A schema that allows the same, without upper limits that nothing reaches.

    Raises:
        ValueError: it is no schema, is too large or too deep, refers to itself without end, or has something that
            cannot be followed.
    """
    if schema is not True and not isinstance(schema, Mapping):
        raise ValueError(f"a JSON schema is an object, or true; got {_shown(schema)}")
    divisor = 1
    for depth, key, value in _walk(schema):
        if depth > _MAX_DEPTH:
            raise ValueError(f"the JSON schema is nested deeper than {_MAX_DEPTH}: it is not compiled")
        if key == "x-guidance" and depth == 1:
            raise ValueError("the JSON schema has x-guidance: options of the compiler cannot be set by a schema")
        if key == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool):
            divisor *= _divisor(value)
            if divisor > _MAX_DIVISOR:
                raise ValueError(
                    f"multipleOf {value} is not supported: divisors of a schema may not multiply to more than "
                    f"{_MAX_DIVISOR}, powers of ten aside"
                )
        for text in (key, value):
            if isinstance(text, str) and (unescapable := _UNESCAPABLE.intersection(text)):
                raise ValueError(f"the JSON schema has the control character {min(unescapable)!r} in {_shown(text)}")
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the JSON schema is not JSON: {error}") from error
    if size > _MAX_CHARACTERS:
        raise ValueError(f"the JSON schema has {size} characters: at most {_MAX_CHARACTERS} are compiled")
    _check_references(schema)
    return {} if schema is True else _limited(schema, "#")


def _limited(schema: Any, path: str) -> Any:
    """Check counts and numbers of properties, and leave out upper limits that nothing reaches."""
    if isinstance(schema, list | tuple):
        return [_limited(inner, f"{path}/{place}") for place, inner in enumerate(schema)]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for name, value in schema.items():
        where = f"{path}/{name}"
        if name == "properties" and isinstance(value, Mapping) and len(value) > _MAX_PROPERTIES:
            raise ValueError(
                f"{where} has {len(value)} properties: at most {_MAX_PROPERTIES} of one object are compiled"
            )
        if name in _COUNTS and not isinstance(value, Mapping):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
                raise ValueError(f"{where} is {_shown(value)}: it must be a whole number, 0 or more")
            if value > _MAX_COUNT and name.startswith("min"):
                raise ValueError(f"{where} is {_shown(value)}: at most {_MAX_COUNT} are supported")
            if value <= _MAX_COUNT:
                kept[name] = int(value)
        else:
            kept[name] = value if name in _VALUES else _limited(value, where)
    return kept


def _check_references(schema: Any) -> None:
    """Refuse references that lead nowhere, or only to each other: they say of no value whether it is allowed."""
    # Without recursion, however long the chain: what is open is being followed, what is done leads to something.
    open_, done = set[int](), set[int]()
    for start in _schemas(schema):
        stack = [(start, iter(_implied(schema, start)))]
        open_.add(id(start))
        while stack:
            node, further = stack[-1]
            for pointer, target in further:
                if id(target) in open_:
                    raise ValueError(f"$ref {pointer!r} leads back to itself, and never says what is allowed")
                if id(target) not in done:
                    open_.add(id(target))
                    stack.append((target, iter(_implied(schema, target))))
                    break
            else:
                open_.discard(id(node))
                done.add(id(node))
                stack.pop()


def _schemas(value: Any) -> Iterator[Any]:
    """Go through the mappings in a schema, but for values that are no schemas."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            yield one
            left += [inner for name, inner in one.items() if name not in _VALUES]
        elif isinstance(one, list | tuple):
            left += one


def _implied(root: Any, node: Any) -> Iterator[tuple[str, Any]]:
    """Give the schemas that a value must follow at the same place as a schema, each with the reference to it."""
    if not isinstance(node, Mapping):
        return
    pointer = node.get("$ref")
    if isinstance(pointer, str) and pointer.startswith("#") and (pointer == "#" or pointer[1] == "/"):
        yield pointer, _target(root, pointer)
    together = node.get("allOf")
    if isinstance(together, list | tuple):
        yield from (("allOf", inner) for inner in together if isinstance(inner, Mapping))


def _target(root: Any, pointer: str) -> Any:
    """Follow a pointer within the schema (RFC 6901)."""
    found = root
    for part in unquote(pointer[2:]).split("/") if pointer != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(name)] if isinstance(found, list | tuple) else found[name]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(f"$ref {pointer!r} leads nowhere: the schema has no {name!r} there") from error
    return found


def _walk(value: Any) -> Iterator[tuple[int, str | None, Any]]:
    """Go through all values in a schema, each with its depth and its key; without recursion, however deep it is."""
    left: list[tuple[int, str | None, Any]] = [(0, None, value)]
    while left:
        depth, key, one = left.pop()
        yield depth, key, one
        if isinstance(one, Mapping):
            least = one.get("minProperties")
            required = one.get("required")
            known = len(required) if isinstance(required, list) else 0
            if isinstance(least, int | float) and least > max(1, known):
                # Keys may come twice, and would count twice.
                raise ValueError(
                    f"minProperties {least} is not supported: it may be at most 1, or the number of required ones"
                )
            for name in one:
                if not isinstance(name, str):
                    raise ValueError(f"the JSON schema has the key {name!r}: keys must be strings")
            left += [(depth + 1, name, inner) for name, inner in one.items()]
        elif isinstance(one, list | tuple):
            left += [(depth + 1, None, inner) for inner in one]


def _divisor(value: float) -> int:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"multipleOf {value} is out of range: it must be above 0")
    divisor = Fraction(repr(value)).numerator
    while divisor % 10 == 0:
        divisor //= 10
    return divisor


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
