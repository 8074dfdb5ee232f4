"""Conversations: the small interface of a chat model, and one that runs a language model of ours by its template."""

import json
import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .generation import LanguageModel, continuations
from .sampling import Sampling
from .streaming import TextStream
from .tokenizers import Tokenizer

Message = Mapping[str, Any]
"""A turn of a conversation: strings under `role`, such as system, user or assistant, under `content`, and under other
keys that a template knows."""

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
            sampling: how tokens are drawn; as the model has it where None.
            stop_strings: strings that end the answer, and are not returned.
            seed: of all draws; 0 or more.

        Raises:
            ValueError: messages, or a value, that the model cannot take.
        """
        ...


class ChatTemplate:
    """A Jinja template that turns a conversation into the text of a prompt, and that text into tokens.

    The template's own special tokens become tokens. What is said is data: a special token's name inside a message is
    encoded as the text that it is. Templates run in a sandbox that can change nothing outside it.

    Args:
        template: the source, as `tokenizer_config.json` and GGUF files have it.
        tokenizer: encodes; its special tokens are those that the template may write.
        variables: what the template may use besides the messages, such as `bos_token`.

    Raises:
        ValueError: a template with a mistake in its syntax.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, variables: Mapping[str, str] | None = None):
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has a mistake in line {error.lineno}: {error.message}") from error
        self._source = template
        self._tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._special = dict(tokenizer.special_tokens)
        # The longest first, since one name may begin another.
        names = sorted(self._special, key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def encode(self, messages: Sequence[Message], *, answering: bool = True) -> list[int]:
        """Give the tokens of a conversation.

        Args:
            messages: oldest first.
            answering: whether the beginning of the assistant's next message follows.

        Raises:
            ValueError: no messages, one without role or content, or a conversation that the template refuses.
        """
        tokens: list[int] = []
        for part, is_special in self._parts(messages, answering):
            tokens += [self._special[part]] if is_special else self._tokenizer.encode(part)
        return tokens

    def end_tokens(self) -> set[int]:
        """Give the special token that the template writes after an assistant's message: it ends an answer."""
        said = "answer"
        conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
        parts = list(self._parts(conversation, answering=False))
        after = next(place for place in reversed(range(len(parts))) if said in parts[place][0])
        return {self._special[part] for part, is_special in parts[after + 1 : after + 2] if is_special}

    def _parts(self, messages: Sequence[Message], answering: bool) -> Iterator[tuple[str, bool]]:
        """Split the rendered text at the special tokens that the template, and not a message, has written."""
        self._check(messages)
        said = self._source + "".join(text for message in messages for text in message.values())
        # Stands inside special tokens' names in messages until the template's own have been found.
        mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in said)
        guarded = [
            {key: text if key == "role" else self._guarded(text, mark) for key, text in message.items()}
            for message in messages
        ]
        try:
            text = self._template.render(messages=guarded, add_generation_prompt=answering, **self._variables)
        except (jinja2.TemplateError, TypeError, AttributeError) as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
        pieces = self._names.split(text) if self._names else [text]
        for place, piece in enumerate(pieces):
            if piece:
                yield (piece, True) if place % 2 else (piece.replace(mark, ""), False)

    def _check(self, messages: Sequence[Message]) -> None:
        if len(messages) == 0:
            raise ValueError("there are no messages: a conversation needs at least one")
        for number, message in enumerate(messages):
            for key in ("role", "content", *message):
                if not isinstance(message.get(key), str):
                    raise ValueError(f"message {number} has the {key} {message.get(key)!r}: it must be a string")
            if self._names is not None and (name := self._names.search(message["role"])):
                raise ValueError(f"message {number} has the special token {name[0]!r} in its role")

    def _guarded(self, text: str, mark: str) -> str:
        if self._names is None:
            return text
        text = self._names.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        # Names that a message and the template would only form together.
        if any(text.endswith(name[:count]) for name in self._special for count in range(1, len(name))):
            text += mark
        if any(text.startswith(name[count:]) for name in self._special for count in range(1, len(name))):
            text = mark + text
        return text


class LocalChat:
    """A chat model that runs a language model by its tokenizer and chat template.

    What the model computed for a conversation is kept, so that the next turn costs only what is new in it.

    Args:
        model: gives the logits; where it has a `context` that is not None, older messages are dropped to fit into it.
        tokenizer: the model's.
        template: the model's chat template, as Jinja source.
        stop: tokens that end an answer, besides the one that the template writes after it.
        variables: what the template may use besides the messages, such as `bos_token`.

    Attributes:
        dropped: how many messages were left out of the last prompt, the oldest ones, because they did not fit.

    Raises:
        ValueError: a template with a mistake in its syntax.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: str,
        *,
        stop: Collection[int] = (),
        variables: Mapping[str, str] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.template = ChatTemplate(template, tokenizer, variables)
        self.stop = {*stop, *self.template.end_tokens()}
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
    ) -> Iterator[str]:
        """Give the answer piece by piece, as `ChatModel.reply`; who stops early may call `close` on what is returned.

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
        stream = TextStream(self.tokenizer, stop_strings)
        steps = continuations(
            self.model,
            [prompt],
            new_tokens=new_tokens,
            sampling=sampling,
            stop=self.stop,
            seed=seed,
            cache=self._cache_for(prompt),
            prefill_chunk=_CHUNK,
        )
        self._answering = self._pieces(prompt, steps, stream)
        return self._answering

    def _pieces(
        self, prompt: list[int], steps: Generator[tuple[int, int], bool | None, None], stream: TextStream
    ) -> Generator[str, None, None]:
        fed = list(prompt)
        with closing(steps):
            for _, token in steps:
                # The cache holds all tokens but the one just drawn.
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
        if self._cache is None or not hasattr(self._cache, "truncate"):
            self._cache, shared = self.model.new_cache(), 0
        else:
            self._cache.truncate(shared)
        self._held = self._held[:shared]
        return self._cache


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
