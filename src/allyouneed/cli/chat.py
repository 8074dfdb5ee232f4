"""`allyouneed chat`: a conversation with a language model in the terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from allyouneed.cli.common import fail
from allyouneed.cli.models import COMPILE_HELP, compile_steps

if TYPE_CHECKING:
    from allyouneed.text import LocalChat
    from allyouneed.text.terminal import Terminal

# Small enough to answer at reading speed on one core, and free to be had.
CHAT_MODEL = "smollm2-135m-instruct"


def command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="An asset, a folder, a GGUF file or a hub repository.")
    ] = CHAT_MODEL,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens with this probability together.")
    ] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, repetition becomes rarer.")] = 1.0,
    seed: Annotated[
        int, typer.Option(help="Of the sampling; the same conversation with the same seed gives the same text.")
    ] = 0,
    system: Annotated[str | None, typer.Option(help="A first message that says how to answer.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: faster, in less memory.")] = None,
    new_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 512,
    compile: Annotated[bool, typer.Option("--compile", help=COMPILE_HELP)] = False,
) -> None:
    """Talk with a language model: Ctrl-C stops an answer, Ctrl-D leaves. Reads lines where it is fed by a pipe."""
    from allyouneed.text import Sampling
    from allyouneed.text.terminal import Terminal, converse

    try:
        sampling = Sampling(temperature, top_p=top_p, repetition_penalty=repetition_penalty)
        if quantize not in (None, "int8", "int4"):
            raise ValueError(f"quantize is {quantize!r}; it must be 'int8' or 'int4'")
        if seed < 0 or new_tokens < 1:
            raise ValueError(f"seed {seed} must be at least 0, and new_tokens {new_tokens} at least 1")
    except ValueError as error:
        fail(error)
    terminal = Terminal()
    chatting = _open_chat(model, quantize, terminal)
    if compile:
        compile_steps(chatting.model, terminal.say)
    terminal.say(f"{model}: Ctrl-C stops an answer, Ctrl-D leaves.")
    if model == CHAT_MODEL:
        terminal.say(
            "A small model: it writes fluent English, rewrites and sums up short texts, and answers simple questions. "
            "Facts, arithmetic and code are often wrong, however sure it sounds; do not rely on them."
        )
    converse(chatting, terminal, system=system, sampling=sampling, seed=seed, new_tokens=new_tokens)


def _open_chat(name: str, quantize: str | None, terminal: "Terminal") -> "LocalChat":
    """Load a model with its tokenizer and chat template."""
    from allyouneed.data import AssetError
    from allyouneed.hub import open_model
    from allyouneed.loading import load_chat

    try:
        terminal.say(f"loading {name} …")
        stored = open_model(name)
        if stored.chat_template is None:
            fail(f"{name} has no chat template: it was not made for conversations. Choose one that was: {CHAT_MODEL}")
        return load_chat(stored, quantize=quantize)  # pyright: ignore[reportArgumentType]
    except (ValueError, FileNotFoundError) as error:
        fail(error)
    except (AssetError, OSError) as error:
        fail(error, 1)
