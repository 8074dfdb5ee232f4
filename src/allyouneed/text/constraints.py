"""Structured output: which tokens may come next, so that what is generated follows a grammar.

A constraint is applied to the sampler: before a token is sampled, the logits of tokens that the grammar does not allow
are masked. What is sampled then has the model's distribution, renormalised over the tokens that are allowed. Grammars
are compiled and followed by llguidance (Moskal et al. 2025), which reads JSON schemas, regular expressions and
context-free grammars in Lark's notation.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .schemas import JSON_OPTIONS, checked_schema
from .token_bytes import first_token_bytes, token_bytes
from .tokenizers import Tokenizer

_MAX_CHARACTERS = 200_000
_MAX_COMPILED = 32

# Where only one text can follow, llguidance would allow the tokens alone that a tokenizer gives for it.
_OPTIONS = '%llguidance {"no_forcing": true}\n'

# How llguidance says where a mistake is, and what else of its messages is said otherwise here.
_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
_WORDS = (
    (re.compile(r"failed to compile JSON schema: "), ""),
    (re.compile(r"^Parser Error: Current row has .*"), "too many different parts may come next"),
    (
        re.compile(r"Resource '(?:json-schema:///)?(.*?)' is not present.*"),
        r"$ref '\1' leads out of the schema, and nothing is fetched",
    ),
    (re.compile(r"NoExtensionBias"), "it refers to itself, and nothing may come next"),
    (re.compile(r"Unimplemented keys: \[(.*)\]"), r"\1 cannot be followed token by token"),
    (
        re.compile(r'invalid regex (".*") \(in regex\): regex parse error: error: '),
        r"the regular expression \1 has a mistake: ",
    ),
    (re.compile(r"regex parse error: error: "), "the regular expression has a mistake: "),
)


class ConstraintError(ValueError):
    """A text that cannot go on: no token of the vocabulary may follow, or the grammar has become too complex."""


@runtime_checkable
class Constraint(Protocol):
    """What may follow in one text; it goes along with the text, token by token."""

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the text must end here: it is complete, and nothing may follow."""
        ...

    def allowed_tokens(self) -> Bool[Tensor, " tokens"]:
        """Say of each token of the tokenizer whether it may come next; special tokens never may.

        Raises:
            ConstraintError: the grammar has become too complex.
        """
        ...

    def advance(self, token: int) -> None:
        """Take in the next token.

        Raises:
            ConstraintError: it is not allowed.
        """
        ...

    def copy(self) -> "Constraint":
        """Give another that stands at the same place, and goes on by itself."""
        ...


@dataclass(frozen=True)
class Grammar:
    """A set of texts, for any tokenizer: made by `json_schema`, `json_object`, `choice`, `regex` or `lark`.

    Attributes:
        source: in Lark's notation, as llguidance reads it.

    Raises:
        ValueError: a grammar that is not understood, or beyond the bounds on size.
    """

    source: str

    def __post_init__(self) -> None:
        if len(self.source) > _MAX_CHARACTERS:
            raise ValueError(f"the grammar has {len(self.source)} characters: at most {_MAX_CHARACTERS} are compiled")
        if message := _mistake(self.source):
            raise ValueError(message)

    @classmethod
    def json_schema(cls, schema: Any) -> "Grammar":
        """Allow JSON that a schema (draft 2020-12) validates.

        Objects have their properties in the schema's order, and between the parts of the JSON stands at most one space
        or one line break with its indentation. Characters are escaped only where they must be. Keywords that no schema
        knows are annotations, as the standard says.

        Args:
            schema: as parsed JSON, so a mapping, or true.

        Raises:
            ValueError: a schema that is malformed, that nothing satisfies, that is too large, or that has a keyword
                which cannot be followed token by token, such as `not` or `uniqueItems`, named.
        """
        content = {**checked_schema(schema), "x-guidance": JSON_OPTIONS}
        try:
            return cls(f"{_OPTIONS}start: %json {json.dumps(content)}")
        except ValueError as error:
            raise ValueError(f"the JSON schema cannot be followed: {error}") from error

    @classmethod
    def json_object(cls) -> "Grammar":
        """Allow any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def choice(cls, options: Sequence[str]) -> "Grammar":
        """Allow one of several texts.

        Raises:
            ValueError: no options, an empty one, or one string in place of several.
        """
        if isinstance(options, str):
            raise ValueError(f"options is one string, {options!r}; it must be several, as [{options!r}]")
        if not options or not all(options):
            raise ValueError(f"options are {list(options)}: there must be at least one, and each must say something")
        spelled = "|".join("".join(_escaped(character) for character in option) for option in options)
        return cls.regex(spelled)

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Allow texts that a regular expression matches as a whole; in Rust's notation, so without look-around.

        Raises:
            ValueError: the expression has a mistake, or something that is not supported.
        """
        try:
            return cls(f"{_OPTIONS}start: /{_library().regex_to_lark(pattern, '')}/")
        except ValueError as error:
            raise ValueError(f"the regular expression {pattern[:100]!r} cannot be followed: {error}") from error

    @classmethod
    def lark(cls, grammar: str) -> "Grammar":
        """Allow texts of a context-free grammar in Lark's notation, from its rule `start`.

        Raises:
            ValueError: the grammar has a mistake, or sets options of the compiler.
        """
        if "%llguidance" in grammar:
            raise ValueError("the grammar sets options by %llguidance: they are set here")
        try:
            return cls(_OPTIONS + grammar)
        except ValueError as error:
            # Our line of options stands before it.
            said = _PLACE.sub(
                lambda place: f"line {int(place[1]) - 1}, column {place[2]}: ", _raw_mistake(_OPTIONS + grammar)
            )
            raise ValueError(f"the grammar cannot be followed: {said or error}") from error

    def constraint(self, tokenizer: Tokenizer, *, beginning: bool = False) -> Constraint:
        """Give what follows the grammar, in a tokenizer's tokens.

        The first call for a tokenizer reads its vocabulary, which takes about a second for 150,000 tokens.

        Args:
            tokenizer: byte-level, SentencePiece-like or of bytes.
            beginning: whether the tokens are decoded by themselves, and not after a prompt: SentencePiece-like
                tokenizers drop a space where a text begins.

        Raises:
            ValueError: a tokenizer whose tokens have no bytes of their own.
        """
        return _vocabulary(tokenizer).begin(self.source, beginning)


class GrammarConstraint:
    """Follows a grammar with a matcher of llguidance; made by `Grammar.constraint`.

    Args:
        vocabulary: of the tokenizer.
        matcher: at the same place as the text.
        source: of the grammar, where the next token is a text's first, which may stand for other bytes; else None.
    """

    def __init__(self, vocabulary: "_Vocabulary", matcher: Any, source: str | None):
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._source = source

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the text must end here."""
        return self.is_complete and self._matcher.is_stopped()

    def allowed_tokens(self) -> Bool[Tensor, " tokens"]:
        """Say of each token whether it may come next."""
        matcher = self._matcher if self._source is None else self._vocabulary.first_matcher(self._source)
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise ConstraintError(f"the grammar cannot be followed further: {_brief(matcher.get_error())}")
        allowed = np.unpackbits(packed, count=self._vocabulary.tokens, bitorder="little")
        return torch.from_numpy(allowed.view(np.bool_))

    def advance(self, token: int) -> None:
        """Take in the next token."""
        spelled = self._vocabulary.spelled(token, first=self._source is not None)
        # Asked first, since a matcher that has failed stays so.
        fits = self._matcher.validate_tokens(spelled) == len(spelled)
        if not fits and not self._matcher.is_error():
            raise ConstraintError(f"token {token} may not come here: the grammar does not allow it")
        if not fits or not self._matcher.consume_tokens(spelled):
            raise ConstraintError(f"the grammar cannot be followed further: {_brief(self._matcher.get_error())}")
        self._source = None

    def copy(self) -> "GrammarConstraint":
        """Give another that stands at the same place, and goes on by itself."""
        return GrammarConstraint(self._vocabulary, self._matcher.deep_copy(), self._source)


def constrained(
    logits: Float[Tensor, " vocabulary"], constraint: Constraint, stop: Collection[int] = ()
) -> Float[Tensor, " vocabulary"]:
    """Mask the logits of tokens that may not come next; those that end a text may come exactly where it is complete.

    Args:
        logits: of the next token; the model may know more tokens than the tokenizer, which then never come.
        constraint: of the text.
        stop: tokens that end the text.

    Raises:
        ConstraintError: no token may come next, or the grammar has become too complex.
    """
    allowed = constraint.allowed_tokens()
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[: len(allowed)] = allowed[: len(logits)]
    ends = [token for token in stop if 0 <= token < len(mask)]
    mask[ends] = constraint.is_complete
    if not bool(mask.any()):
        raise ConstraintError("no token of the vocabulary may come next: it cannot spell what the grammar asks for")
    return logits.masked_fill(~mask.to(logits.device), -torch.inf)


class _Vocabulary:
    """A tokenizer's tokens as llguidance wants them, with a token of its own for each byte and for the end.

    Special tokens are no part of any text. What ends a text is known to whoever generates, and is told by
    `is_complete`: so llguidance's own end of a text is a token that no model has.
    """

    def __init__(self, tokenizer: Tokenizer):
        within = token_bytes(tokenizer)
        first = first_token_bytes(tokenizer, within)
        self.tokens = len(within)
        self._first = {token: spelled for token, spelled in enumerate(first) if spelled != within[token]}
        self._within = _library_tokenizer(within)
        self._at_first = _library_tokenizer(first) if self._first else self._within
        self._matchers: OrderedDict[tuple[str, bool], Any] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, source: str, beginning: bool) -> GrammarConstraint:
        return GrammarConstraint(
            self, self._matcher(source, first=False), source if beginning and self._first else None
        )

    def first_matcher(self, source: str) -> Any:
        """Give a matcher at the beginning of a text, which sees tokens as they are spelled there."""
        return self._matcher(source, first=True)

    def spelled(self, token: int, first: bool) -> list[int]:
        """Give the tokens of `_library_tokenizer` that stand for a token."""
        if first and token in self._first:
            return [self.tokens + byte for byte in self._first[token]]
        # Beyond the tokenizer's own tokens lie those that only this class may use.
        return [token if 0 <= token < self.tokens else self.tokens + 256]

    def _matcher(self, source: str, first: bool) -> Any:
        with self._lock:
            if (source, first) not in self._matchers:
                library = _library()
                tokenizer = self._at_first if first else self._within
                matcher = library.LLMatcher(tokenizer, source, log_level=0, limits=_limits())
                if matcher.is_error():
                    raise ValueError(f"the grammar cannot be followed: {_brief(matcher.get_error())}")
                self._matchers[source, first] = matcher
            self._matchers.move_to_end((source, first))
            if len(self._matchers) > _MAX_COMPILED:
                self._matchers.popitem(last=False)
            return self._matchers[source, first].deep_copy()


_VOCABULARIES: "WeakKeyDictionary[Any, _Vocabulary]" = WeakKeyDictionary()
_VOCABULARIES_LOCK = threading.Lock()


def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    with _VOCABULARIES_LOCK:
        if tokenizer not in _VOCABULARIES:
            _VOCABULARIES[tokenizer] = _Vocabulary(tokenizer)
        return _VOCABULARIES[tokenizer]


class _Spelling:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], own: int):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]
        self._own = own

    def __call__(self, text: bytes | str) -> list[int]:
        return [self._own + byte for byte in (text.encode() if isinstance(text, str) else text)]


def _library_tokenizer(spelled: Sequence[bytes]) -> Any:
    own = [bytes([byte]) for byte in range(256)]
    return _library().LLTokenizer(_Spelling([*spelled, *own, b"<end>"], len(spelled)))


def _library() -> Any:
    # Not above: nobody pays for it who does not use it.
    import llguidance

    return llguidance


@lru_cache
def _limits() -> Any:
    return _library().LLParserLimits(max_grammar_size=100_000, max_lexer_states=50_000, verbose_errors=False)


def _mistake(source: str) -> str:
    """Say what is wrong with a grammar; nothing where it can be followed by some tokenizer."""
    return _PLACE.sub("", _raw_mistake(source))


@lru_cache(maxsize=256)
def _raw_mistake(source: str) -> str:
    """Say what is wrong with a grammar, and where; what the compiler was given by us is counted too."""
    failed, messages = _library().LLMatcher.validate_grammar_with_warnings(source, limits=_limits())
    return _brief(messages[0]) if failed else ""


def _brief(message: str) -> str:
    """Say in a line what llguidance says in many, without its own words for what is ours."""
    lines = message.split("<state>")[0].strip().splitlines() or ["it gave up"]
    # Of a regular expression's mistake the last line says what it is.
    said = " ".join([lines[0], *(line for line in lines[1:] if line.startswith("error:"))])
    for pattern, words in _WORDS:
        said = pattern.sub(words, said)
    return said


def _escaped(character: str) -> str:
    return rf"\x{{{ord(character):x}}}"
