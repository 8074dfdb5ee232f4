"""The language-model reading list that runs: papers as code, each with its claims tried on real data."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load, load_batch, load_chat

__all__ = ["load", "load_batch", "load_chat"]


def __getattr__(name: str) -> Any:
    # Not imported above: torch takes seconds, and `allyouneed list` needs none of it.
    if name in __all__:
        from . import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
