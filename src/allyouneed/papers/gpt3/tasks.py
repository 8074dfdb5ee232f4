"""Tasks to try few-shot learning on: some of BIG-bench's with their options put together, and the paper's own (3.9)."""

from dataclasses import replace
from functools import cache

from allyouneed.data.splits import SPLITS, Split
from allyouneed.data.tasks import Example, Task, task


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


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def _question(text: str) -> str:
    return text.partition("Correct Answer:")[0].strip()
