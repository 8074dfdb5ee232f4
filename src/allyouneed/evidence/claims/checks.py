"""Refusing the arguments of claims, by name."""

import math
from collections.abc import Collection
from numbers import Real


def check_name(what: str, name: object) -> None:
    """Refuse what is no name."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} must be a name, got {name!r}")


def check_finite(what: str, value: object) -> None:
    """Refuse what is no finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}")


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bounds(low_name: str, low: float | None, high_name: str, high: float | None) -> None:
    """Refuse bounds of which none is given, or between which nothing lies."""
    if low is None and high is None:
        raise ValueError(f"one of {low_name} and {high_name} must be given, both are None")
    for name, value in ((low_name, low), (high_name, high)):
        if value is not None:
            check_finite(name, value)
    if low is not None and high is not None and low > high:
        raise ValueError(f"{low_name} {low} is above {high_name} {high}: no value is in between")


def as_float(value: float | None) -> float | None:
    """Give a bound as a float; an open one stays open."""
    return None if value is None else float(value)
