"""What became of many prompts: answers, values, failures and what they cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from .requests import Completion, Scores, Usage

_Answer = TypeVar("_Answer", Completion, Scores)


@dataclass(frozen=True)
class Result(Generic[_Answer]):
    """What became of one prompt.

    Attributes:
        answer: a completion, or scores; the last attempt's where there were several. None where it failed.
        error: why there is no answer.
        value: the answer parsed by the schema; None where no schema was given, or where it could not be parsed.
        parse_error: why it could not be parsed.
        attempts: how many answers there were, because those before could not be parsed.
        from_store: whether nothing was asked, since all attempts had been kept.
    """

    answer: _Answer | None = None
    error: Exception | None = None
    value: Any = None
    parse_error: ValueError | None = None
    attempts: int = 1
    from_store: bool = False

    @property
    def text(self) -> str:
        """The completion's text.

        Raises:
            Exception: what the prompt failed of.
        """
        if self.error is not None:
            raise self.error
        if not isinstance(self.answer, Completion):
            raise ValueError("these are scores: they have no text")
        return self.answer.text


@dataclass(frozen=True)
class Results(Sequence[Result[_Answer]]):
    """What became of all prompts, in their order.

    Attributes:
        results: of each prompt.
        asked: how many answers the model gave for it; less than the prompts where some were kept or asked twice.
        usage: tokens that these answers took.
        damaged: files of the store that could not be used, and were asked anew.
    """

    results: Sequence[Result[_Answer]]
    asked: int = 0
    usage: Usage = field(default_factory=Usage)
    damaged: Sequence[Path] = ()

    def __getitem__(self, place: Any) -> Any:
        return self.results[place]

    def __iter__(self) -> Iterator[Result[_Answer]]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def failed(self) -> list[int]:
        """The places of prompts that have no answer."""
        return [place for place, result in enumerate(self.results) if result.error is not None]

    @property
    def unparsed(self) -> list[int]:
        """The places of prompts whose answers could not be parsed."""
        return [place for place, result in enumerate(self.results) if result.parse_error is not None]

    @property
    def texts(self) -> list[str]:
        """All completions' texts.

        Raises:
            Exception: what the first prompt failed of that did.
        """
        return [result.text for result in self.results]
