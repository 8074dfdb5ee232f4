"""Many prompts in one call by the engine, for rooms that ask a model much: see `allyouneed.prompting`."""

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from allyouneed.nn import Decoder
from allyouneed.prompting import Completion, CompletionRequest, LocalBatch, Usage
from allyouneed.text import ChatTemplate, Grammar, Sampling, TextStream, Tokenizer

from .engine import Engine
from .requests import FinishReason, LogProbabilities, Request
from .serve import ServeConfig, make_engine


class EngineBatch(LocalBatch):
    """Answers many prompts together, each as if it were alone.

    Args:
        model: any `Decoder`. It is put into evaluation mode and arranged for inference.
        tokenizer: the model's.
        template: of conversations; none can be answered where None.
        stop: tokens that end a completion, besides those that the model, its tokenizer and the template state.
        config: how many sequences are decoded at once, and the memory for their keys and values.

    Raises:
        ValueError: a model that cannot be served so.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        *,
        stop: Collection[int] = (),
        config: ServeConfig | None = None,
    ):
        super().__init__(model, tokenizer, template, stop=stop)
        self.engine: Engine = make_engine(model, config or ServeConfig())

    def complete(
        self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Completion | Exception], object]
    ) -> None:
        """Complete prompts together; no more of them wait in the engine than its queue takes."""
        open_: dict[int, _Listener] = {}
        waiting = iter(enumerate(requests))
        limits = self.engine.scheduler.limits
        at_once = min(2 * limits.max_num_sequences, limits.max_queue)
        try:
            more = True
            while more or open_:
                while more and len(open_) < at_once:
                    if (following := next(waiting, None)) is None:
                        more = False
                        break
                    place, request = following
                    try:
                        listener = self._submit(request)
                    except (ValueError, RuntimeError) as error:
                        on_result(place, error)
                    else:
                        open_[place] = listener
                self.engine.step()
                for place in [place for place, listener in open_.items() if listener.result is not None]:
                    result = open_.pop(place).result
                    assert result is not None
                    on_result(place, result)
        finally:
            # Left early, by an error of who is told or by Ctrl-C, the engine must not keep what nobody wants.
            for listener in open_.values():
                self.engine.cancel(listener.number)
            while open_ and self.engine.step():
                pass

    def _submit(self, request: CompletionRequest) -> "_Listener":
        prompt = self.encode(request.prompt)
        listener = _Listener(TextStream(self.tokenizer, request.stop_strings, prompt=prompt), len(prompt))
        schema = request.schema
        asked = Request(
            prompt,
            request.new_tokens,
            listener,
            request.sampling or Sampling(),
            self.stop,
            request.seed,
            constraint=None if schema is None else Grammar.json_schema(schema).constraint(self.tokenizer),
        )
        listener.number = self.engine.submit(asked)
        return listener


class _Listener:
    """What the engine tells of one prompt, turned into its completion."""

    def __init__(self, stream: TextStream, prompt: int):
        self.number = -1
        self.result: Completion | Exception | None = None
        self._stream, self._prompt, self._cached, self._generated, self._text = stream, prompt, 0, 0, ""

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        self._cached = cached_tokens

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        self._generated += 1
        self._text += self._stream.add(token)
        return self._stream.stopped

    def ended(self, choice: int, reason: FinishReason) -> None:
        self._text += self._stream.finish()
        usage = Usage(self._prompt, self._generated, self._cached)
        stopped = reason == "stop" or self._stream.stopped
        self.result = Completion(self._text, "stop" if stopped else "length", usage)

    def failed(self, error: Exception) -> None:
        self.result = error


def load(
    model: Any, tokenizer: Tokenizer, template: ChatTemplate | None, *, max_num_sequences: int, cache_megabytes: int
) -> LocalBatch:
    """Give an engine for a model that it can run, and otherwise what answers one by one."""
    config = ServeConfig(max_num_sequences=max_num_sequences, cache_megabytes=cache_megabytes)
    if not isinstance(model, Decoder):
        warnings.warn(f"a {type(model).__name__} answers one by one: the engine runs decoders alone", stacklevel=3)
        return LocalBatch(model, tokenizer, template)
    return EngineBatch(model, tokenizer, template, config=config)
