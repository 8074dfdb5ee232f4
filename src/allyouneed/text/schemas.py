"""What of JSON Schema can be followed token by token: what is refused before a schema is compiled, and why."""

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

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
# States of the automaton that divides by it grow with the divisor.
_MAX_DIVISOR = 10_000
_UNESCAPABLE = {chr(code) for code in range(0x20)} - set("\n\r\b\t\f")


def check_schema(schema: Any) -> None:
    """Make sure that a schema can be compiled in bounded time, and that what follows it is valid.

    Raises:
        ValueError: it is no schema, is too large or too deep, or has something that cannot be followed.
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
