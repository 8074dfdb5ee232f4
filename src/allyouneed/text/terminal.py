"""A conversation at a terminal, or over a pipe: lines in, answers out as they are written."""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import cast

from .chat import ChatModel
from .sampling import Sampling

# A model's output is not trusted to move the cursor or to set a window's title: control characters, but not tab and
# line feed, are left out.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Terminal:
    """Standard input and output. What is not an answer goes to standard error, so that a pipe gets answers alone."""

    def __init__(self):
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        # So that bytes that are no UTF-8 cost their own line and not all that was read with them.
        cast(TextIOWrapper, sys.stdin).reconfigure(errors="surrogateescape")
        if self.interactive:
            with suppress(ImportError):
                # Lines can then be edited and called back.
                import readline  # noqa: F401

    def lines(self) -> Iterator[str]:
        """Give what is typed, line by line, until the end of the input; empty lines are passed over."""
        while True:
            try:
                line = input("> " if self.interactive else "")
            except EOFError:
                if self.interactive:
                    print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                self.say("\nCtrl-D leaves.")
                if not self.interactive:
                    return
                continue
            if any("\ud800" <= character <= "\udfff" for character in line):
                self.say(f"a line is not UTF-8 and is passed over: {line!a}")
            elif line.strip():
                yield line

    def say(self, text: str) -> None:
        """Print what is not part of an answer, in lines that end between words."""
        width = shutil.get_terminal_size().columns if self.interactive else 10**6
        for line in text.split("\n"):
            print(textwrap.fill(line, width), file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Print a piece of an answer at once, without control characters."""
        print(text.translate(_CONTROLS), end="", flush=True)


def converse(
    model: ChatModel,
    terminal: Terminal,
    *,
    system: str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    new_tokens: int = 512,
) -> None:
    """Answer line by line until the input ends; every answer sees what was said before.

    An answer that is interrupted stays in the history as far as it was written. A message that the model refuses is
    taken back, and the reason is said.

    Args:
        model: answers.
        terminal: where lines come from and answers go.
        system: a first message that says how to answer; none where None.
        sampling: how tokens are sampled.
        seed: of the sampling; each answer has its own, counted from it.
        new_tokens: the most tokens of an answer.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    told = 0
    for number, line in enumerate(terminal.lines()):
        messages.append({"role": "user", "content": line})
        answer = ""
        try:
            for piece in model.reply(messages, new_tokens=new_tokens, sampling=sampling, seed=seed + number):
                answer += piece
                terminal.write(piece)
        except KeyboardInterrupt:
            terminal.say("\n(stopped)")
        except ValueError as error:
            terminal.say(f"not answered: {error}")
            messages.pop()
            continue
        terminal.write("\n")
        messages.append({"role": "assistant", "content": answer})
        dropped = getattr(model, "dropped", 0)
        if dropped > told:
            told = dropped
            terminal.say(f"(the conversation is longer than the model reads: it no longer sees the first {dropped})")
