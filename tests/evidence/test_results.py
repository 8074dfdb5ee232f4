"""Results files: what is recorded comes back as it was, and what was changed by hand is found out."""

import copy
import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allyouneed.evidence import (
    Better,
    Experiment,
    Record,
    ResultsError,
    Run,
    TrialResult,
    judge_again,
    read_results,
    record,
    run,
    trials_of,
    verify,
    write_results,
)
from allyouneed.evidence.results import checksum

sys.path.insert(0, str(Path(__file__).parent))

import sample

AGAIN = "run `allyouneed run sample --scale laptop --record` to record it anew"


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return sample.experiment(sample.TWO_ARMS, seeds=3, claims=(sample.SMALLER,))


@pytest.fixture(scope="module")
def finished(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(experiment, folder=tmp_path_factory.mktemp("runs"), workers=1)


@pytest.fixture
def contents(finished: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("ALLYOUNEED_STANDINS", raising=False)
    return record(finished)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sample" / "results" / "laptop.json"


def signed(contents: dict[str, Any]) -> dict[str, Any]:
    """Give contents the checksum that fits them, as somebody who knows how may do."""
    return contents | {"checksum": checksum(contents)}


def test_what_was_written_is_read_and_follows_from_its_trials(
    finished: Run, experiment: Experiment, contents: dict[str, Any], path: Path
) -> None:
    write_results(path, contents)
    found = read_results(path)
    assert found == contents
    assert trials_of(found) == finished.trials
    verify(experiment, found)
    assert (found["paper"], found["scale"]) == ("sample", "laptop")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["recorded"])
    assert [(claim["id"], claim["verdict"], claim["measured"]) for claim in found["claims"]] == [
        ("small_is_smaller", "reproduced", -1.0)
    ]
    assert [(trial["arm"], trial["seed"]) for trial in found["trials"]] == [
        (arm, seed) for arm in ("small", "large") for seed in range(3)
    ]
    assert not list(path.parent.glob("*.new"))


def test_a_recorded_file_is_the_same_text_every_time(contents: dict[str, Any], path: Path) -> None:
    write_results(path, contents)
    first = path.read_text()
    write_results(path, read_results(path))
    assert path.read_text() == first
    assert first.endswith("}\n")


def test_there_is_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_results(path)


def rename_metric(contents: dict[str, Any]) -> None:
    for trial in contents["trials"]:
        trial["metrics"]["length"] = trial["metrics"].pop("size")


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "verdict": lambda contents: contents["claims"][0].update(verdict="contradicted"),
    "measured": lambda contents: contents["claims"][0].update(measured=-3.0),
    "paper's figure": lambda contents: contents["claims"][0].update(paper_value="half"),
    "threshold": lambda contents: contents["claims"][0].update(threshold="small − large on size < 5"),
    "sample": lambda contents: contents["claims"][0]["samples"].update({"0": -2.0}),
    "added to a claim": lambda contents: contents["claims"][0].update(remark="well done"),
    "taken from a claim": lambda contents: contents["claims"][0].pop("note"),
    "metric": lambda contents: contents["trials"][0]["metrics"].update(size=0.5),
    "metric's name": rename_metric,
    "trial left out": lambda contents: contents["trials"].pop(),
    "claim left out": lambda contents: contents["claims"].pop(),
    "claim added": lambda contents: contents["claims"].append(contents["claims"][0]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_by_hand_is_found(experiment: Experiment, contents: dict[str, Any], path: Path, edit: str) -> None:
    edited = copy.deepcopy(contents)
    EDITS[edit](edited)
    write_results(path, edited)
    with pytest.raises(ResultsError, match="was changed after it was recorded") as error:
        read_results(path)
    assert str(path) in str(error.value)
    assert AGAIN in str(error.value)
    # With a checksum that fits, the file can be read, and what is claimed no longer follows from the trials.
    write_results(path, signed(edited))
    with pytest.raises(ResultsError, match="sample"):
        verify(experiment, read_results(path))


@pytest.mark.parametrize("key", ["recorded", "environment", "scale"])
def test_an_edit_beside_the_claims_is_found(contents: dict[str, Any], path: Path, key: str) -> None:
    write_results(path, contents | {key: "another"})
    with pytest.raises(ResultsError, match="was changed after it was recorded"):
        read_results(path)


def test_a_seed_left_out_or_another_configuration_is_found(experiment: Experiment, contents: dict[str, Any]) -> None:
    last = contents["trials"][-1]
    name = f"{last['arm']}, seed {last['seed']}"
    with pytest.raises(ResultsError, match=f"what was recorded of {name} is not what the experiment declares"):
        verify(experiment, contents | {"trials": contents["trials"][:-1]})
    changed = [*contents["trials"][:-1], last | {"config": {}}]
    with pytest.raises(ResultsError, match=f"what was recorded of {name} is not what the experiment declares"):
        verify(experiment, contents | {"trials": changed})


def test_a_claim_that_was_changed_since_is_named(experiment: Experiment, contents: dict[str, Any]) -> None:
    verify(experiment, contents)
    stricter = replace(sample.SMALLER, test=Better("size", arm="small", than="large", margin=0.5))
    with pytest.raises(ResultsError, match="claim small_is_smaller was recorded with another threshold, bounds than"):
        verify(replace(experiment, claims=(stricter,)), contents)
    reworded = replace(sample.SMALLER, statement="Small is small.")
    with pytest.raises(ResultsError, match="small_is_smaller was recorded with another statement than"):
        verify(replace(experiment, claims=(reworded,)), contents)
    with pytest.raises(ResultsError, match="1 claims are recorded, there are 2"):
        verify(replace(experiment, claims=(sample.SMALLER, replace(sample.SMALLER, id="another"))), contents)
    unheard_of = replace(sample.SMALLER, test=Better("speed", arm="small", than="large"))
    with pytest.raises(ResultsError, match="speed"):
        verify(replace(experiment, claims=(unheard_of,)), contents)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "perplexity: 3",
        lambda text: "[]",
        lambda text: "3",
        lambda text: "null",
        lambda text: "{}",
        lambda text: text.replace('"arm"', '"arms"'),
        lambda text: text.replace('"trials": [', '"trials": [3, '),
        lambda text: re.sub(r'"metrics": \{[^}]*\}', '"metrics": null', text),
        lambda text: re.sub(r'"size": [^,]*', '"size": "small"', text),
    ],
    ids=["half", "empty", "text", "list", "number", "null", "no keys", "other keys", "no trial", "no metrics", "word"],
)
def test_what_is_no_results_file_is_named_with_the_way_out(
    contents: dict[str, Any], path: Path, damage: Callable[[str], str]
) -> None:
    write_results(path, contents)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ResultsError, match="is not a results file") as error:
        read_results(path)
    assert str(path) in str(error.value)
    assert AGAIN in str(error.value)


def test_bytes_that_are_no_text_are_no_results_file(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="is not a results file"):
        read_results(path)


@pytest.mark.parametrize("key", ["paper", "scale", "recorded", "environment", "claims", "trials", "checksum"])
def test_a_file_without_one_of_its_parts_is_no_results_file(contents: dict[str, Any], path: Path, key: str) -> None:
    del contents[key]
    write_results(path, contents if key == "checksum" else signed(contents))
    with pytest.raises(ResultsError, match=f"is not a results file.*'{key}'") as error:
        read_results(path)
    assert AGAIN in str(error.value)


def test_a_run_with_missing_trials_is_not_recorded(finished: Run, contents: dict[str, Any]) -> None:
    failure = Record("large", 2, "failed", error="ArithmeticError: too much")
    partial = replace(finished, records=(*finished.records[:-1], failure))
    with pytest.raises(ResultsError, match="missing trials is not recorded: large, seed 2"):
        record(partial)
    shown = record(partial, complete=False)
    assert len(shown["trials"]) == 5
    assert shown["claims"][0]["verdict"] == "inconclusive"
    assert shown["claims"][0]["missing"] == ["large, seed 2"]


def test_a_run_on_stand_ins_is_not_recorded(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", "tests/standins")
    with pytest.raises(ResultsError, match="unset ALLYOUNEED_STANDINS"):
        record(finished)
    assert record(finished, complete=False)["trials"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named(finished: Run, path: Path, value: float) -> None:
    first = finished.records[0]
    assert isinstance(first.result, TrialResult)
    result = replace(first.result, metrics={**first.result.metrics, "rise": value})
    diverged = replace(finished, records=(replace(first, result=result), *finished.records[1:]))
    with pytest.raises(ResultsError, match=f"rise of small, seed 0, is {value}") as error:
        write_results(path, record(diverged))
    assert str(path) in str(error.value)
    assert not path.exists()


def test_a_full_disk_leaves_the_file_that_was_there(
    contents: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, text: str, **options: Any) -> int:
        whole_write(file, text[:100], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    write_results(path, contents)
    whole_write = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(path, contents | {"recorded": "later"})
    assert read_results(path) == contents
    assert [file.name for file in path.parent.iterdir()] == ["laptop.json"]


def test_nothing_in_a_file_is_beyond_strict_json(contents: dict[str, Any]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = json.dumps(contents)
    assert json.loads(text, parse_constant=refuse) == contents


def leaving(config: Any, context: Any) -> dict[str, float]:
    """Leave a table and a picture, and what the seed was."""
    context.exhibit("table.md", f"| seed |\n|---|\n| {context.seed} |\n")
    context.exhibit("picture.svg", f"<svg><text>{config.size}</text></svg>")
    return {"size": float(config.size)}


def test_what_trials_leave_to_look_at_is_recorded_with_the_first_seed(tmp_path: Path, experiment: Experiment) -> None:
    left = record(run(replace(experiment, trial=leaving), folder=tmp_path, workers=1))
    arms = list(experiment.scales["laptop"].arms)
    assert list(left["exhibits"]) == [f"{arm}-{name}" for arm in arms for name in ("picture.svg", "table.md")]
    assert left["exhibits"][f"{arms[0]}-table.md"] == "| seed |\n|---|\n| 0 |\n"
    assert left["checksum"] == checksum(left) != checksum(left | {"exhibits": {}})


@pytest.mark.parametrize("name", ["page.html", "../table.md", "folder/table.md"])
def test_an_exhibit_is_a_plain_file_of_a_known_kind(name: str, tmp_path: Path, experiment: Experiment) -> None:
    def trial(config: Any, context: Any) -> dict[str, float]:
        context.exhibit(name, "")
        return {}

    finished = run(replace(experiment, trial=trial), folder=tmp_path, workers=1)
    assert finished.failures and all("must be a plain file name" in failure.error for failure in finished.failures)


def test_judging_again_keeps_trials_and_takes_new_words(experiment: Experiment, contents: dict[str, Any]) -> None:
    [claim] = experiment.claims
    reworded = replace(experiment, claims=(replace(claim, source="Table 7", sabotage="arms exchanged"),))
    with pytest.raises(ResultsError, match="recorded with another"):
        verify(reworded, contents)
    again = judge_again(reworded, contents)
    verify(reworded, again)
    assert again["trials"] == contents["trials"]
    assert (again["claims"][0]["source"], again["claims"][0]["sabotage"]) == ("Table 7", "arms exchanged")
    assert again["checksum"] == checksum(again) != contents["checksum"]
    assert judge_again(experiment, contents) == contents
    # A claim that is no longer tried may go; the trials tell of it still.
    assert judge_again(replace(experiment, claims=()), contents)["claims"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "another"}, "claim another was not recorded"),
        ({"test": Better("size", "small", "large", margin=0.5)}, "the threshold of claim small_is_smaller was"),
    ],
)
def test_judging_again_refuses_what_was_not_tried(
    experiment: Experiment, contents: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    [claim] = experiment.claims
    with pytest.raises(ResultsError, match=message):
        judge_again(replace(experiment, claims=(replace(claim, **change),)), contents)
