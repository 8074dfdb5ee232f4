"""Conversations: the small interface of a chat model, and one that runs a language model of ours by its template."""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

from .chat_template import ChatTemplate, Message
from .constraints import Grammar
from .generation import LanguageModel, compile_or_warn, continuations
from .generation_config import end_tokens
from .sampling import Sampling
from .streaming import TextStream
from .tokenizers import Tokenizer

# Tokens of a long prompt that are fed at a time.
_CHUNK = 512


@runtime_checkable
class ChatModel(Protocol):
    """Whatever answers a conversation: a local model, or a server."""

    def reply(
        self,
        messages: Sequence[Message],
        *,
        new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop_strings: Collection[str] = (),
        seed: int = 0,
    ) -> Iterator[str]:
        """Give the answer piece by piece, in whole characters.

        Args:
            messages: the conversation so far, oldest first, up to the message to be answered.
            new_tokens: the most tokens of the answer.
            sampling: how tokens are sampled; as the model has it where None.
            stop_strings: strings that end the answer, and are not returned.
            seed: of the sampling; 0 or more.

        Raises:
            ValueError: messages, or a value, that the model cannot take.
        """
        ...


class LocalChat:
    """A chat model that runs a language model by its tokenizer and chat template.

    What the model computed for a conversation is kept, so that the next turn costs only what is new in it.

    Args:
        model: gives the logits; where it has a `context` that is not None, older messages are dropped to fit into it.
        tokenizer: the model's.
        template: a chat template, as Jinja source; the model's own where None.
        stop: tokens that end an answer, besides those that the model and its tokenizer state as ends, and the one that
            the template writes after an answer.
        variables: what the template may use besides the messages and special tokens' names, as for `ChatTemplate`.
        compile: whether single tokens are computed by compiled code, as in `generate`.

    Attributes:
        stop: all tokens that end an answer.
        dropped: how many messages were left out of the last prompt, the oldest ones, because they did not fit.

    Raises:
        ValueError: no template at all, or one with a mistake in its syntax.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: str | None = None,
        *,
        stop: Collection[int] = (),
        variables: Mapping[str, str] | None = None,
        compile: bool = False,
    ):
        if compile:
            compile_or_warn(model)
        self.model = model
        self.tokenizer = tokenizer
        template = getattr(model, "chat_template", None) if template is None else template
        if template is None:
            raise ValueError("the model has no chat template: it was not made for conversations; give one, or another")
        self.template = ChatTemplate(template, tokenizer, variables)
        self.stop = {*stop, *end_tokens(model, tokenizer), *self.template.end_tokens()}
        self.dropped = 0
        self._cache: Any = None
        self._held: list[int] = []
        self._answering: Generator[str, None, None] | None = None

    def reply(
        self,
        messages: Sequence[Message],
        *,
        new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop_strings: Collection[str] = (),
        seed: int = 0,
        grammar: Grammar | None = None,
    ) -> Iterator[str]:
        """Give the answer piece by piece, as `ChatModel.reply`; who stops early may call `close` on what is returned.

        Where a grammar is given, the answer follows it.

        Where the conversation does not fit beside an answer, its oldest messages are left out, but for system messages
        at its beginning; `dropped` says how many. An answer gets as much room as it asks for, up to a quarter of the
        context.

        Raises:
            ValueError: no messages, one without role or content, a last message that does not fit into the context by
                itself, or a value out of its range.
        """
        if self._answering is not None:
            # It would go on in the cache that this answer needs.
            self._answering.close()
        prompt = self._fitting(messages, new_tokens)
        context = getattr(self.model, "context", None)
        if context is not None and new_tokens > 0:
            new_tokens = min(new_tokens, context - len(prompt))
        stream = TextStream(self.tokenizer, stop_strings, prompt=prompt)
        steps = continuations(
            self.model,
            [prompt],
            new_tokens=new_tokens,
            sampling=sampling,
            stop=self.stop,
            seed=seed,
            cache=self._cache_for(prompt),
            prefill_chunk=_CHUNK,
            constraints=None if grammar is None else [grammar.constraint(self.tokenizer)],
        )
        self._answering = self._pieces(prompt, steps, stream)
        return self._answering

    def _pieces(
        self, prompt: list[int], steps: Generator[tuple[int, int], bool | None, None], stream: TextStream
    ) -> Generator[str, None, None]:
        fed = list(prompt)
        with closing(steps):
            for _, token in steps:
                # The cache holds all tokens but the one just sampled.
                self._held = fed[:]
                fed.append(token)
                if piece := stream.add(token):
                    yield piece
                if stream.stopped:
                    return
        if piece := stream.finish():
            yield piece

    def _fitting(self, messages: Sequence[Message], new_tokens: int) -> list[int]:
        context = getattr(self.model, "context", None)
        prompt = self.template.encode(messages)
        self.dropped = 0
        if context is None:
            return prompt
        room = context - max(1, min(new_tokens, context // 4))
        system = next((place for place, message in enumerate(messages) if message["role"] != "system"), 0)
        while len(prompt) > room:
            self.dropped += 1
            if system + self.dropped >= len(messages):
                self.dropped = 0
                raise ValueError(
                    f"the last message takes {len(prompt)} tokens of the {room} that the model's context of {context} "
                    "has beside an answer: shorten it"
                )
            rest = messages[system + self.dropped :]
            # A conversation begins with a question.
            if rest[0]["role"] == "user" or not any(message["role"] == "user" for message in rest):
                prompt = self.template.encode([*messages[:system], *rest])
        return prompt

    def _cache_for(self, prompt: list[int]) -> Any:
        """Give the cache, cut to what it shares with the prompt; its last token must be fed again, for its logits."""
        both = zip(self._held, prompt[:-1], strict=False)
        shared = next(
            (place for place, (held, token) in enumerate(both) if held != token),
            min(len(self._held), len(prompt) - 1),
        )
        if self._cache is None or not hasattr(self._cache, "truncate") or shared < self._cache.shortest:
            self._cache, shared = self.model.new_cache(), 0
        else:
            self._cache.truncate(shared)
        self._held = self._held[:shared]
        return self._cache
