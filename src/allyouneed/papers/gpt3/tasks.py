"""Tasks to try few-shot learning on: some of BIG-bench's with their options put together, and the paper's own (3.9)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from allyouneed.data.splits import SPLITS, Split
from allyouneed.data.tasks import Example, Task, task

from .prompts import Layout, draw
from .scoring import Normalisation


@cache
def question_types(split: Split) -> Task:
    """Give questions with answers, whose options are the types that there are: "Date", "Humans" and so on.

    The types come with a full stop in the source, and without one here.
    """
    read = task("question_type", split)
    # Of all splits, since the rarest types are not in every one.
    options = tuple(
        sorted({_bare(text) for part in SPLITS for one in task(read.name, part).examples for text in one.answers})
    )
    examples = (replace(one, answers=tuple(map(_bare, one.answers)), options=options) for one in read.examples)
    return replace(read, options=options, examples=tuple(examples))


@cache
def science(split: Split) -> Task:
    """Give questions of school science with a fact that helps, each with one right option and three wrong ones.

    Joined of two tasks of Natural Instructions about questions of QASC (Khot et al. 2020): one lists right answers, the
    other wrong ones. The first says which split a question is in; the second has another order and so other splits.
    """
    read = task("qasc_right", split)
    wrong = {_question(one.text): one.answers for part in SPLITS for one in task("qasc_wrong", part).examples}
    joined = []
    for one in read.examples:
        options = [_bare(text) for text in (one.answers[0], *wrong.get(_question(one.text), ())[:3])]
        if len(set(options)) == 4 and all(options):
            joined.append(Example(one.text, (options[0],), tuple(sorted(options))))
    return replace(read, examples=tuple(joined))


@dataclass(frozen=True)
class Tried:
    """A task with options, and how it is put to a model.

    Attributes:
        name: of the task.
        layout: how a published model is shown it.
        normalisation: of its options; for questions of science the paper's own choice (section 2.4).
    """

    name: Literal["question_type", "science", "sentiment"]
    layout: Layout
    normalisation: Normalisation = "per_token"

    def examples(self, split: Split, longest: int) -> list[Example]:
        """Give the questions of a split that are short enough."""
        read: dict[str, Any] = {"question_type": question_types, "science": science}
        found: Task = read[self.name](split) if self.name in read else task(self.name, split)
        return short(found.examples, longest)


OPTIONS = (
    Tried("question_type", Layout("", "\nType:")),
    Tried("science", Layout("", "\nAnswer:"), "unconditional"),
    Tried("sentiment", Layout("Review: ", "\nSentiment:")),
)
FREE = {
    "addition": ("arithmetic_2_digit_addition", Layout("Q: ", "\nA:"), 4),
    "unscrambling": ("unscrambling", Layout("", "", "\n"), 6),
}
"""Tasks whose answer is written: its name in the data, its layout, and the most tokens of an answer."""


def short(examples: Sequence[Example], longest: int) -> list[Example]:
    """Give the examples whose question has at most so many characters."""
    return [one for one in examples if len(one.text) <= longest]


def draw_questions(questions: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draw the questions of a seed, the same for every number of examples; all where there are not as many."""
    return list(draw(questions, min(count, len(questions)), seed))


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def _question(text: str) -> str:
    return text.partition("Correct Answer:")[0].strip()
