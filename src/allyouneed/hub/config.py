"""Reading a checkpoint's `config.json`: a value is there and of its type, or the error says so."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from .errors import UnsupportedError

_Value = TypeVar("_Value")
_ABSENT = object()
_FILE = "config.json"

PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification", "regression")
"""What a `config.json` may say that a classifier's logits are for; they are the same for all."""


def refuse_unless(
    config: Mapping[str, Any], key: str, allowed: Collection[Any], *, absent: Any = _ABSENT, file: str = _FILE
) -> None:
    """Refuse a configuration in which a key has a value that is not built here.

    Args:
        config: of a checkpoint.
        key: what to look at.
        allowed: the values that are accepted.
        absent: what the architecture takes where the key is absent; where it is not given, absence is accepted.
        file: where the configuration stands, for messages.

    Raises:
        UnsupportedError: another value, named with those that would be accepted.
    """
    value = config.get(key, absent)
    # Compared one by one, since a value may be a list or a mapping, and True is not 1 here.
    if value is _ABSENT or any(type(value) is type(other) and value == other for other in allowed):
        return
    said = "is absent, which means" if key not in config else "is"
    choices = " or ".join(repr(other) for other in allowed)
    raise UnsupportedError(f"{file}: {key} {said} {value!r}; only {choices} is supported here")


def canonical(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Give a configuration in which every number stands under the name that its architecture uses.

    GPT-2's width is `n_embd`, and `hidden_size` is read as the same.

    Args:
        config: of a checkpoint.
        aliases: other names, and those that they stand for.

    Raises:
        UnsupportedError: both are given, with different values.
    """
    found = dict(config)
    for alias, key in aliases.items():
        if alias not in found:
            continue
        value = found.pop(alias)
        if found.setdefault(key, value) != value:
            raise UnsupportedError(
                f"config.json: {alias} is {value!r} and {key} is {found[key]!r}, which are two names of one number"
            )
    return found


def required(
    config: Mapping[str, Any], key: str, kind: type[_Value], default: Any = _ABSENT, *, file: str = _FILE
) -> _Value:
    """Return a value of a configuration, checked for its type.

    Args:
        config: of a checkpoint.
        key: what to return.
        kind: int, float, bool or str; a whole number is accepted as a float. Numbers must not be negative.
        default: taken where the key is absent or null; where it is not given, the key must be there.
        file: where the configuration stands, for messages.

    Raises:
        UnsupportedError: the key is absent without a default, or its value has another type.
    """
    value = config.get(key)
    if value is None:
        if default is _ABSENT:
            raise UnsupportedError(f"{file} has no {key}, which must be given")
        value = default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UnsupportedError(f"{file}: {key} is {value!r}; it must be of type {kind.__name__}")
    if kind in (int, float) and not 0 <= value < float("inf"):  # pyright: ignore[reportOperatorIssue]
        raise UnsupportedError(f"{file}: {key} is {value!r}; it must be a finite number, not below zero")
    return value


def read_key_value_heads(config: Mapping[str, Any], heads: int, default: int) -> int:
    """Return how many heads of keys and values there are, which groups of query heads share.

    Args:
        config: of a checkpoint.
        heads: of queries.
        default: taken where `num_key_value_heads` is absent or null.

    Raises:
        UnsupportedError: a number that does not divide that of query heads.
    """
    found = required(config, "num_key_value_heads", int, default)
    if found < 1 or heads % found:
        raise UnsupportedError(
            f"config.json: num_key_value_heads is {found}; it must divide num_attention_heads, which is {heads}"
        )
    return found


def read_labels(config: Mapping[str, Any], *, least: int = 1) -> tuple[str, ...]:
    """Return the names of a classifier's labels in the order of their numbers.

    Where `id2label` names none there are `num_labels`, or else two, by the names LABEL_0, LABEL_1 …

    Args:
        config: of a checkpoint.
        least: how many there must be.

    Raises:
        UnsupportedError: they are not numbered from 0, have no names, are too few, or are not `num_labels`.
    """
    named = config.get("id2label")
    if named is None:
        named = {str(index): f"LABEL_{index}" for index in range(required(config, "num_labels", int, 2))}
    numbers = {str(key): label for key, label in named.items()} if isinstance(named, Mapping) else {}
    labels = [numbers.get(str(index)) for index in range(len(numbers))]
    if len(labels) < least or not all(isinstance(label, str) for label in labels):
        raise UnsupportedError(
            f"config.json: id2label is {named!r}; there must be {least} labels or more, numbered from 0, with names"
        )
    refuse_unless(config, "num_labels", (len(labels), None))
    return tuple(map(str, labels))


def label_entries(labels: Sequence[str], problem_type: str | None = None) -> dict[str, Any]:
    """Give the entries of a `config.json` that name a classifier's labels, and say what their logits are for."""
    return {
        **({} if problem_type is None else {"problem_type": problem_type}),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
