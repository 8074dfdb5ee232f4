"""The tasks of BIG-bench: what an example is, and that what is held out was not seen."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allyouneed.data import SPLITS, is_present
from allyouneed.data.pinned import ASSETS
from allyouneed.data.tasks import ARITHMETIC, TASKS, Example, _read, task

REAL = pytest.mark.skipif(not is_present("bigbench"), reason="the asset bigbench is not in the cache")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a function that puts rows in the place of a task's."""
    monkeypatch.setattr("allyouneed.data.tasks.fetch", lambda name: tmp_path)

    def write(file: str, rows: list[dict[str, Any]], **fields: Any) -> None:
        (tmp_path / file).write_text(json.dumps({"examples": rows, **fields}), encoding="utf-8")

    _read.cache_clear()
    yield write
    _read.cache_clear()


def test_every_task_has_a_file_in_the_asset():
    assert len(TASKS) == len(set(TASKS)) == len(ASSETS["bigbench"].members) == 40
    assert len(ARITHMETIC) == 20


def test_options_stand_in_one_order_whatever_the_rows_have(written: Any):
    scores = [{"b": 1, "a": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 0}]
    written("fact_checker-fever.json", [{"input": f" {n} ", "target_scores": s} for n, s in enumerate(scores)])
    found = task("fever", "train")
    assert found.options == ("a", "b")
    assert found.examples[0] == Example("0", ("b",), ("a", "b"))
    assert [example.label for example in found.examples] == [1, 1, 0]


def test_examples_with_options_of_their_own_keep_them(written: Any):
    rows = [{"input": f"{n}?", "target": str(n), "target_scores": {str(n): 1, "cat": 0}} for n in range(3)]
    written("arithmetic-1_digit_addition.json", rows)
    found = task("arithmetic_1_digit_addition", "train")
    assert found.options == ()
    assert found.examples[2] == Example("2?", ("2",), ("2", "cat"))


def test_free_answers_may_be_several_and_have_no_label(written: Any):
    written("qa_wikidata.json", [{"input": "The genre is", "target": ["a", "b"]}], task_prefix=" Say it. ")
    found = task("wikidata", "train")
    assert found.instruction == "Say it."
    assert found.examples == (Example("The genre is", ("a", "b")),)
    with pytest.raises(ValueError, match="'The genre is' has no options"):
        _ = found.examples[0].label


def test_blocks_are_held_out_and_their_questions_not_seen(written: Any):
    texts = [f"question {n}" for n in range(2000)]
    texts[0] = texts[455]  # in validation
    texts[456] = texts[999]  # in the test
    written("qa_wikidata.json", [{"input": text, "target": "x"} for text in texts])
    kept = {split: [example.text for example in task("wikidata", split).examples] for split in SPLITS}
    assert kept["test"] == [texts[n] for n in (*range(950, 1000), *range(1950, 2000))]
    assert kept["validation"] == [texts[n] for n in (*range(450, 500), *range(1450, 1500)) if n != 456]
    assert len(kept["train"]) == 2000 - 200 - 1


def test_a_passage_is_in_one_split(written: Any):
    rows = [{"input": f"Town {n % 40}: text {n}", "target_scores": {"True": 1, "False": 0}} for n in range(400)]
    written("vitaminc_fact_verification.json", rows)
    towns = [{example.text.partition(":")[0] for example in task("vitaminc", split).examples} for split in SPLITS]
    assert sum(map(len, towns)) == len(set.union(*towns)) == 40


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"there is no task 'chess'; there are sentiment, .*vitaminc"):
        task("chess", "train")


@REAL
def test_the_published_tasks_are_as_large_as_they_should_be():
    sizes = {"sentiment": 57_466, "vitaminc": 54_668, "fever": 6_612, "wikidata": 20_442}
    for name, size in sizes.items():
        counts = [len(task(name, split).examples) for split in SPLITS]
        assert 0.9 * size < sum(counts) <= size
        assert min(counts) > 0.02 * size
    assert task("sentiment", "test").options == ("ambivalent", "negative", "neutral", "positive")
    assert task("vitaminc", "test").options == ("False", "Neither", "True")
    assert task("arithmetic_2_digit_addition", "train").examples[0].answers == ("109",)


@REAL
@pytest.mark.parametrize("name", ["sentiment", "vitaminc", "quoref", "unscrambling"])
def test_published_questions_are_in_one_split(name: str):
    texts = [{example.text for example in task(name, split).examples} for split in SPLITS]
    assert sum(map(len, texts)) == len(set.union(*texts))
