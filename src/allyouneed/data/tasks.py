"""Tasks that language models are put to: questions with answers or options, from BIG-bench (Srivastava et al. 2022).

BIG-bench carries a canary, by which its authors ask that no published model is trained on it. Models that are trained
on it here are for experiments and are not published.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .assets import fetch
from .splits import ROWS_IN_A_BLOCK, Split, check_split, split_of_block, without_repeats

ARITHMETIC = tuple(
    f"arithmetic_{digits}_digit_{operation}"
    for digits in range(1, 6)
    for operation in ("addition", "subtraction", "multiplication", "division")
)
NATURAL_INSTRUCTIONS = {
    "quoref": "subtask002_quoref_answer_generation",
    "mctaco_temporal": "subtask018_mctaco_temporal_reasoning_presence",
    "mctaco_span": "subtask020_mctaco_span_based_question",
    "mctaco_grammar": "subtask021_mctaco_grammatical_logical",
    "cosmosqa_right": "subtask024_cosmosqa_answer_generation",
    "cosmosqa_wrong": "subtask025_cosmosqa_incorrect_answer_generation",
    "drop": "subtask028_drop_answer_generation",
    "winogrande": "subtask033_winogrande_answer_generation",
    "qasc_overlap": "subtask039_qasc_find_overlapping_words",
    "qasc_right": "subtask041_qasc_answer_generation",
    "qasc_wrong": "subtask042_qasc_incorrect_option_generation",
    "essential_terms": "subtask044_essential_terms_identifying_essential_words",
    "question_type": "subtask046_miscellaenous_question_typing",
    "multirc": "subtask056_multirc_classify_correct_answer",
}
"""Tasks of Natural Instructions (Mishra et al. 2022) under shorter names."""
_FILES: Mapping[str, str] = {
    "sentiment": "multiemo-all_sentence_en.json",
    "vitaminc": "vitaminc_fact_verification.json",
    "fever": "fact_checker-fever.json",
    "wikidata": "qa_wikidata.json",
    "unscrambling": "word_unscrambling.json",
    "conflicts": "contextual_parametric_knowledge_conflicts.json",
    **{name: f"{name.replace('_', '-', 1)}.json" for name in ARITHMETIC},
    **{name: f"natural_instructions-{file}.json" for name, file in NATURAL_INSTRUCTIONS.items()},
}
TASKS = tuple(_FILES)
"""The names that `task` takes."""

# Neighbouring rows are often of one passage; what ends the passage, in the tasks where it comes again far away.
_PASSAGES = {"vitaminc": ":", "quoref": "Question:", "drop": "Question:"}


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        text: what is asked.
        answers: what counts as right, the first being the one to learn.
        options: what may be answered; empty where the answer is free. The first answer is among them.
    """

    text: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def label(self) -> int:
        """The place of the right answer among the options.

        Raises:
            ValueError: a question without options.
        """
        if not self.options:
            raise ValueError(f"the question {self.text[:60]!r} has no options, so its answer has no label")
        return self.options.index(self.answers[0])


@dataclass(frozen=True)
class Task:
    """A task's examples of one split.

    Attributes:
        name: in `TASKS`.
        instruction: what is asked of every example, in the words of its authors; empty where there are none.
        options: of every example; empty where the answer is free, or where each example has its own.
        examples: in the order of the source.
    """

    name: str
    instruction: str
    options: tuple[str, ...]
    examples: tuple[Example, ...]


def task(name: str, split: Split) -> Task:
    """Read a task; the first call of all fetches the asset `bigbench`.

    Rows are cut into blocks of 50 neighbours, or by what passage they are about where a passage comes again elsewhere,
    and 18 of 20 blocks or passages are training, one is validation, one test. A question that stands in two splits is
    left out of the earlier of training, validation and test.

    Raises:
        ValueError: no such task or split.
        AssetError: the asset cannot be had.
    """
    if name not in _FILES:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return _read(name, fetch("bigbench") / _FILES[name])[check_split(split)]


@cache
def _read(name: str, path: Path) -> dict[Split, Task]:
    contents = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for number, row in enumerate(contents["examples"]):
        rows[_split_of(name, number, row["input"])].append(_example(row))
    common = {frozenset(example.options) for examples in rows.values() for example in examples}
    # In one order for all, since some rows list their options in another.
    options = tuple(sorted(next(iter(common)))) if len(common) == 1 else ()
    instruction = contents.get("task_prefix", "").strip()
    return {
        split: Task(
            name, instruction, options, tuple(replace(example, options=options or example.options) for example in kept)
        )
        for split, kept in without_repeats(rows, lambda example: (example.text,)).items()
    }


def _example(row: Mapping[str, Any]) -> Example:
    scores = row.get("target_scores", {})
    options = tuple(scores)
    answers = row.get("target", [option for option, score in scores.items() if score == max(scores.values())])
    answers = (answers,) if isinstance(answers, str) else tuple(answers)
    return Example(row["input"].strip(), answers, options)


def _split_of(name: str, number: int, text: str) -> Split:
    place = number // ROWS_IN_A_BLOCK
    if name in _PASSAGES:
        passage = text.partition(_PASSAGES[name])[0]
        place = int.from_bytes(hashlib.sha256(passage.encode()).digest()[:8])
    return split_of_block(place)
