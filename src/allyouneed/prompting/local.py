"""Models on this machine: what they are known by, and their answers one by one."""

import hashlib
import inspect
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allyouneed.text import (
    ChatModel,
    ChatTemplate,
    Grammar,
    LanguageModel,
    TextStream,
    Tokenizer,
    continuations,
    end_tokens,
    score_tokens,
)

from .requests import Completion, CompletionRequest, FinishReason, Prompt, ScoreRequest, Scores, Usage, digest

# Prompts whose continuations are scored together, before their scores are told.
_SCORED_TOGETHER = 32
_CHUNK = 512


class LocalBatch:
    """Answers one by one with any language model of ours; an engine that answers many together derives from it.

    Args:
        model: gives the logits.
        tokenizer: the model's.
        template: of conversations; none can be answered where None.
        stop: tokens that end a completion, besides those that the model, its tokenizer and the template state.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        *,
        stop: Collection[int] = (),
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self._identity: Mapping[str, Any] | None = None
        self.stop = {*stop, *end_tokens(model, tokenizer), *(() if template is None else template.end_tokens())}

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digests of the weights as they are in memory, of the tokenizer and of the template.

        Weights that were trained further, or quantised, are another model's, wherever they were loaded from. Reading
        them takes about a second for each gigabyte, once. Weights must not change afterwards.
        """
        if self._identity is None:
            template = None
            if self.template is not None:
                probe = [{"role": "user", "content": "question"}]
                template = digest([self.template.source, self.template.encode(probe)])
            self._identity = {
                "weights": weights_digest(self.model),
                "tokenizer": tokenizer_digest(self.tokenizer),
                "template": template,
                "stop": sorted(self.stop),
            }
        return self._identity

    def complete(
        self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Completion | Exception], object]
    ) -> None:
        """Complete prompts one after the other."""
        for place, request in enumerate(requests):
            try:
                result: Completion | Exception = self._completed(request)
            except (ValueError, RuntimeError) as error:
                result = error
            on_result(place, result)

    def score(self, requests: Sequence[ScoreRequest], on_result: Callable[[int, Scores | Exception], object]) -> None:
        """Score continuations: what all prompts begin with is computed once, and a prompt once for all of its own."""
        for start in range(0, len(requests), _SCORED_TOGETHER):
            prompts: dict[int, list[int]] = {}
            options: dict[int, list[list[int]]] = {}
            for place in range(start, min(start + _SCORED_TOGETHER, len(requests))):
                try:
                    prompt, own = self._coded(requests[place])
                except ValueError as error:
                    on_result(place, error)
                else:
                    prompts[place], options[place] = prompt, own
            if not prompts:
                continue
            shared = _common([prompt[:-1] for prompt in prompts.values()])
            scored = score_tokens(
                self.model,
                next(iter(prompts.values()))[:shared],
                [prompt[shared:] for prompt in prompts.values()],
                list(options.values()),
            )
            for place, sums in zip(prompts, scored, strict=True):
                on_result(place, Scores(tuple(sums), tuple(map(len, options[place]))))

    def encode(self, prompt: Prompt) -> list[int]:
        """Give the tokens of a prompt.

        Raises:
            ValueError: no tokens, a conversation without a template for it, or one that the template refuses.
        """
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode_prompt(prompt)
        elif self.template is None:
            raise ValueError("the model has no chat template: it was not made for conversations")
        else:
            tokens = self.template.encode(prompt)
        if not tokens:
            raise ValueError("the prompt has no tokens: there must be at least one")
        return tokens

    def _completed(self, request: CompletionRequest) -> Completion:
        prompt = self.encode(request.prompt)
        constraint = None if request.schema is None else Grammar.json_schema(request.schema).constraint(self.tokenizer)
        stream, generated, text = TextStream(self.tokenizer, request.stop_strings, prompt=prompt), 0, ""
        steps = continuations(
            self.model,
            [prompt],
            new_tokens=request.new_tokens,
            sampling=request.sampling,
            stop=self.stop,
            seed=request.seed,
            cache=self.model.new_cache(),
            prefill_chunk=_CHUNK,
            constraints=[constraint],
        )
        with closing(steps):
            last = None
            for _, last in steps:
                generated += 1
                text += stream.add(last)
                if constraint is not None:
                    constraint.advance(last)
                if stream.stopped:
                    break
        ended = stream.stopped or generated < request.new_tokens or (constraint is not None and constraint.is_finished)
        text += stream.finish()
        reason: FinishReason = "stop" if ended or stream.stopped else "length"
        return Completion(text, reason, Usage(len(prompt), generated))

    def _coded(self, request: ScoreRequest) -> tuple[list[int], list[list[int]]]:
        prompt = self.encode(request.prompt)
        options = [self.tokenizer.encode_continuation(text) for text in request.continuations]
        context = getattr(self.model, "context", None)
        # A continuation's last token is scored, and not read.
        longest = len(prompt) + max(map(len, options)) - 1
        if context is not None and longest > context:
            raise ValueError(f"{longest} tokens of prompt and continuation are more than the model's context {context}")
        if not all(options):
            raise ValueError("a continuation has no tokens: it cannot be scored")
        return prompt, options


class ChatBatch:
    """Answers conversations one by one with any `ChatModel`.

    Args:
        chat: the model.
        identity: what its answers depend on, as JSON, such as its name and version: it is part of the key under which
            they are kept.

    Raises:
        ValueError: no identity.
    """

    def __init__(self, chat: ChatModel, identity: Mapping[str, Any]):
        if not identity:
            raise ValueError("a chat model is kept apart from others by its identity: give at least a name")
        self.chat = chat
        self.identity = dict(identity)
        self._takes_grammar = "grammar" in inspect.signature(chat.reply).parameters

    def complete(
        self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Completion | Exception], object]
    ) -> None:
        """Answer conversations one after the other."""
        for place, request in enumerate(requests):
            try:
                result: Completion | Exception = Completion("".join(self._pieces(request)))
            except (ValueError, RuntimeError, OSError) as error:
                result = error
            on_result(place, result)

    def score(self, requests: Sequence[ScoreRequest], on_result: Callable[[int, Scores | Exception], object]) -> None:
        """Refuse: a chat model answers, and tells no log probabilities."""
        for place in range(len(requests)):
            on_result(place, ValueError(f"a {type(self.chat).__name__} tells no log probabilities"))

    def _pieces(self, request: CompletionRequest) -> Iterator[str]:
        if isinstance(request.prompt, str):
            raise ValueError("a chat model answers conversations: it does not continue texts")
        further: dict[str, Any] = {}
        if request.schema is not None:
            if not self._takes_grammar:
                raise ValueError(f"a {type(self.chat).__name__} cannot be held to a schema: ask with constrain=False")
            further["grammar"] = Grammar.json_schema(request.schema)
        return self.chat.reply(
            request.prompt,
            new_tokens=request.new_tokens,
            sampling=request.sampling,
            stop_strings=request.stop_strings,
            seed=request.seed,
            **further,
        )


def weights_digest(model: Any) -> str:
    """Give the SHA-256 of a model's class, configuration and weights, with their names, types and shapes."""
    total = hashlib.sha256(f"{type(model).__qualname__} {getattr(model, 'config', None)!r}".encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            total.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
            flat = value.detach().cpu().contiguous().flatten()
            total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            total.update(f"\0{name} {value!r}\0".encode())
    return total.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Give the SHA-256 of a tokenizer's files as it writes them."""
    total = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for path in sorted(Path(folder).iterdir()):
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def _common(rows: Sequence[list[int]]) -> int:
    """Count the tokens with which all rows begin."""
    first, last = min(rows), max(rows)
    return next((place for place, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1), len(first))
