"""`allyouneed serve`: a language model behind OpenAI's API, on this machine."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from allyouneed.cli.common import fail
from allyouneed.cli.models import COMPILE_HELP, compile_steps

if TYPE_CHECKING:
    from allyouneed.hub import StoredModel
    from allyouneed.text import Tokenizer


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An asset, a folder, a GGUF file or a hub repository.")],
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="This machine's own address, so that no other machine reaches it.")] = (
        "127.0.0.1"
    ),
    api_key: Annotated[
        str | None, typer.Option(envvar="ALLYOUNEED_API_KEY", help="What clients must send; anyone may ask without.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model; MODEL where not given.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: less memory, faster for few at a time.")] = None,
    max_num_sequences: Annotated[int, typer.Option(help="How many are generated at once.")] = 16,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; further ones are refused.")] = 256,
    cache: Annotated[int, typer.Option(metavar="MB", help="Memory for keys and values.")] = 512,
    seconds: Annotated[float, typer.Option(help="The longest that a request may take.")] = 300.0,
    finish_seconds: Annotated[float, typer.Option(help="How long answers may go on after Ctrl-C or SIGTERM.")] = 30.0,
    speculate: Annotated[str | None, typer.Option(help="ngram: propose what followed the same words before.")] = None,
    threads: Annotated[int, typer.Option(help="Of the model's computations.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help=COMPILE_HELP)] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may use the server, * for all; may be repeated."),
    ] = None,
) -> None:
    """Serve a language model on this machine, as OpenAI's API does: chats and completions, also as streams."""
    try:
        from allyouneed.papers.serving.connections import make_server  # noqa: F401
        from allyouneed.papers.serving.serve import ServeConfig
        from allyouneed.papers.serving.serve import serve as serve_model
    except ImportError as error:
        fail(f"{error.name} is missing: `pip install 'allyouneed[serve]'` installs what a server needs")
    from allyouneed.data import AssetError
    from allyouneed.hub import open_model

    say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    try:
        if quantize not in (None, "int8", "int4"):
            raise ValueError(f"quantize is {quantize!r}; it must be 'int8' or 'int4'")
        config = ServeConfig(
            host,
            port,
            api_key,
            max_num_sequences,
            max_queue,
            cache,
            seconds,
            finish_seconds,
            speculate=speculate,
            threads=threads,  # pyright: ignore[reportArgumentType]
            cors=tuple(cors or ()),
        )
        say(f"loading {model} …")
        stored = open_model(model)
        loaded, tokenizer, variables, stop = _load(stored, quantize)
        if compile:
            compile_steps(loaded, say)
        serve_model(
            loaded,
            tokenizer,
            name=name or model,
            chat_template=stored.chat_template,
            variables=variables,
            stop=stop,
            config=config,
            say=say,
        )
    except (ValueError, FileNotFoundError) as error:
        fail(error)
    except (AssetError, OSError) as error:
        fail(error, 1)


def _load(stored: "StoredModel", quantize: str | None) -> tuple[Any, "Tokenizer", dict[str, str], list[int]]:
    """Load a model with its tokenizer, what its template may use, and the tokens that end its texts."""
    from allyouneed.loading import load_opened
    from allyouneed.text import end_tokens

    loaded, tokenizer = load_opened(stored, quantize=quantize)  # pyright: ignore[reportArgumentType]
    return loaded, tokenizer, dict(tokenizer.special_tokens_map), list(end_tokens(loaded, tokenizer))
