"""`allyouneed serve`: a model, loaded, behind the API on this machine."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from allyouneed.nn import Decoder
from allyouneed.text import ChatTemplate, Tokenizer

from .costs import bytes_per_token, most_tokens
from .engine import Engine
from .limits import Limits
from .speculation import NGramDraft

_BLOCK = 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeConfig:
    """How a model is served.

    Attributes:
        host: the address; this machine's own alone by default.
        port: 0 takes any free one.
        api_key: what clients must send; nothing where None.
        max_num_sequences: how many are generated at once.
        max_queue: requests that may wait before further ones are refused.
        cache_megabytes: memory for keys and values.
        seconds: the longest that a request may take.
        finish_seconds: how long answers that are begun may take to be finished after SIGTERM or Ctrl-C.
        speculate: "ngram" takes as draft tokens what followed the same tokens before; None speculates nothing.
        threads: of torch.
        cors: sites whose pages may use the server from a browser, such as "http://localhost:3000"; "*" means all.

    Raises:
        ValueError: a number out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_num_sequences: int = 16
    max_queue: int = 256
    cache_megabytes: int = 512
    seconds: float = 300.0
    finish_seconds: float = 30.0
    speculate: str | None = None
    threads: int = 1
    cors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (
            ("port", 0),
            ("max_num_sequences", 1),
            ("max_queue", 1),
            ("cache_megabytes", 1),
            ("threads", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: it must be at least {least}")
        for name in ("seconds", "finish_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: it must be above 0 and finite")
        if self.port > 65_535:
            raise ValueError(f"port {self.port} is out of range: it must be at most 65535")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("the API key must be one or more printable ASCII characters")
        if self.speculate not in (None, "ngram"):
            raise ValueError(f"speculate is {self.speculate!r}; it must be 'ngram', or left out")
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"cors {origin!r} is no origin: it must be as 'http://localhost:3000', or '*'")


def make_engine(model: Decoder, config: ServeConfig) -> Engine:
    """Make the engine that a configuration wants.

    Raises:
        ValueError: a cache of less than a block, or a model that cannot be served with so many sequences at once.
    """
    draft_tokens = 4 if config.speculate else 0
    decoded = config.max_num_sequences * (1 + draft_tokens)
    tokens = min(max(64, 2 * decoded), most_tokens(model) or math.inf)
    if tokens <= decoded:
        raise ValueError(
            f"max_num_sequences {config.max_num_sequences} with {draft_tokens} draft tokens each are too many for this "
            f"model's quantised linear layers, which take at most {tokens} tokens at a time: it must be at most "
            f"{(tokens - 1) // (1 + draft_tokens)}"
        )
    each = bytes_per_token(model)
    cache_tokens = config.cache_megabytes * 1_000_000 // each
    if cache_tokens < _BLOCK:
        raise ValueError(
            f"{config.cache_megabytes} MB hold the keys and values of {cache_tokens} tokens, {each} bytes each: "
            f"there must be room for at least {_BLOCK}"
        )
    limits = Limits(config.max_num_sequences, int(tokens), config.max_queue, draft_tokens)
    return Engine(
        model,
        cache_tokens=cache_tokens // _BLOCK * _BLOCK,
        block_size=_BLOCK,
        limits=limits,
        draft=NGramDraft() if draft_tokens else None,
    )


def serve(
    model: Any,
    tokenizer: Tokenizer,
    *,
    name: str,
    chat_template: str | None = None,
    variables: Mapping[str, str] | None = None,
    stop: Collection[int] = (),
    config: ServeConfig | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Serve a model until SIGINT or SIGTERM.

    Args:
        model: a `Decoder`.
        tokenizer: its tokenizer.
        name: by which requests ask for it.
        chat_template: Jinja source; without one, there are no chats.
        variables: what the template may use.
        stop: tokens that end an answer.
        config: how it is served.
        say: is told where the server is.

    Raises:
        ValueError: what cannot be served, or not so.
        OSError: the address is taken.
    """
    from .connections import allow_many_connections, listen, make_server
    from .server import Protection, create_app
    from .service import Service

    config = config or ServeConfig()
    if not isinstance(model, Decoder):
        raise ValueError(f"{name} is a {type(model).__name__}: what is served must be a decoder, which generates text")
    torch.set_num_threads(config.threads)
    template = None if chat_template is None else ChatTemplate(chat_template, tokenizer, variables)
    engine = make_engine(model, config)
    service = Service(engine, tokenizer, name=name, template=template, stop=stop, seconds=config.seconds)
    allow_many_connections()
    opened = listen(config.host, config.port)
    host = f"[{config.host}]" if ":" in config.host else config.host
    port = opened.getsockname()[1]

    def ready() -> None:
        say(f"serving {name} at http://{host}:{port}/v1 (Ctrl-C stops)")
        if config.api_key is None and config.host not in _LOOPBACK:
            say(f"whoever reaches {config.host} may use it: set ALLYOUNEED_API_KEY to ask for a key")

    # Whoever has a key is trusted, and other machines have names that are not known here.
    guarded = config.api_key is None and config.host in _LOOPBACK
    hosts = frozenset({"127.0.0.1", "localhost", "[::1]"}) if guarded else None
    app = create_app(service, Protection(config.api_key, hosts=hosts, origins=config.cors))

    def stop_serving() -> None:
        say(f"ending: what is begun may take {config.finish_seconds:g} more seconds (once more ends at once)")
        engine.drain(config.finish_seconds)

    server = make_server(app, finish_seconds=config.finish_seconds, on_ready=ready, on_stop=stop_serving)
    server.run(sockets=[opened])
