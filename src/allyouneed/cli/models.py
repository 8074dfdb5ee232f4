"""The options that `chat` and `serve` share, and what becomes of them."""

from collections.abc import Callable
from typing import Any

COMPILE_HELP = "Compute tokens by compiled code: faster, where there is a C++ compiler; its work is kept."


def compile_steps(model: Any, say: Callable[[str], object]) -> None:
    """Let a model compute single tokens by compiled code where that can be, and say what came of it."""
    from allyouneed.nn import compile_decoder

    say(str(compile_decoder(model)))
