"""The runner: what is reused, what survives which death, and that every way to a result gives the same, bit for bit."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from rich.console import Console

from allyouneed.evidence import Progress, ResultsError, Run, SettingError, digests, plan, record, run, runs_folder
from allyouneed.evidence import trial as trial_module
from allyouneed.evidence.display import display

sys.path.insert(0, str(Path(__file__).parent))

import sample
from sample import SampleConfig, experiment, marks

PATIENCE = 300.0
"""Seconds after which a test gives up; the machine may be busy."""


@pytest.fixture(autouse=True)
def _no_endless_test() -> Iterator[None]:
    """A runner that never ends is a failed test, not a suite that hangs."""

    def give_up(*_: object) -> None:
        raise TimeoutError("the test did not end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(PATIENCE))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    return tmp_path / "marks.txt"


def metrics(finished: Run) -> dict[tuple[str, int], dict[str, float]]:
    assert not finished.failures, [failure.error for failure in finished.failures]
    return {(result.arm, result.seed): dict(result.metrics) for result in finished.trials}


def folders(finished: Run) -> dict[str, Path]:
    """Give each arm's folder, where there is one seed."""
    return {
        arm: next(path for path in (finished.folder / arm).iterdir() if path.is_dir()) for arm in finished.scale.arms
    }


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + PATIENCE / 2
    while not happened():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended before its time: {process.communicate()}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


# What is reused


def test_a_finished_trial_is_reused(tmp_path: Path, marked: Path) -> None:
    arms = {arm: SampleConfig(marks=str(marked)) for arm in ("one", "two")}
    first = run(experiment(arms, seeds=2), folder=tmp_path, in_process=True)
    second = run(experiment(arms, seeds=3), folder=tmp_path, in_process=True)
    assert first.seeds == (0, 1)
    assert [record.reused for record in first.records] == [False] * 4
    assert [(record.arm, record.seed) for record in second.records if not record.reused] == [("one", 2), ("two", 2)]
    assert len(marks(marked)) == 6
    assert {key: value for key, value in metrics(second).items() if key[1] < 2} == metrics(first)
    assert [(result.arm, result.seed) for result in second.trials] == [(arm, seed) for arm in arms for seed in range(3)]


def test_each_trial_s_folder_says_what_it_was(tmp_path: Path) -> None:
    finished = run(experiment({"one": SampleConfig(size=3.0)}), folder=tmp_path, in_process=True)
    folder = folders(finished)["one"]
    told = json.loads((folder / "config.json").read_text())
    assert (told["arm"], told["seed"], told["config"]["size"]) == ("one", 0, 3.0)
    assert {"python", "versions", "processor", "cores", "device", "commit"} <= set(
        json.loads((folder / "environment.json").read_text())
    )
    assert "one says hello" in (folder / "log.txt").read_text()
    assert json.loads((folder / "result.json").read_text())["metrics"] == metrics(finished)["one", 0]
    assert not list(folder.glob("*.new"))


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"size": "2"}},
        {"settings": {"steps": "31"}},
        {"precision": "64-true"},
        {"scale_name": "smoke"},
    ],
    ids=str,
)
def test_a_changed_configuration_never_reuses_a_result(tmp_path: Path, marked: Path, changed: dict[str, Any]) -> None:
    tried = experiment({"one": SampleConfig(marks=str(marked))})
    run(tried, folder=tmp_path, in_process=True)
    assert not run(tried, folder=tmp_path, in_process=True, **changed).records[0].reused
    assert run(tried, folder=tmp_path, in_process=True).records[0].reused
    assert len(marks(marked)) == 2


def test_a_value_of_another_type_is_another_configuration(tmp_path: Path) -> None:
    tasks = [
        plan(experiment({"one": SampleConfig(size=size)}), {"one": SampleConfig(size=size)}, (0,), tmp_path)[0]
        for size in (1.0, 1.5, -1.0)
    ]
    assert len({task.folder for task in tasks}) == 3


def test_fresh_throws_away_what_there_was(tmp_path: Path, marked: Path) -> None:
    tried = experiment({"one": SampleConfig(marks=str(marked))})
    first = run(tried, folder=tmp_path, in_process=True)
    (folders(first)["one"] / "left over.txt").write_text("of the first run")
    second = run(tried, folder=tmp_path, in_process=True, fresh=True)
    assert not second.records[0].reused
    assert metrics(first) == metrics(second)
    assert len(marks(marked)) == 2
    assert not (folders(second)["one"] / "left over.txt").exists()


@pytest.mark.parametrize("damage", ["", '{"arm": "one", "se', "[1, 2]", '{"arm": "one"}', '{"unknown": 1}'])
def test_a_result_that_cannot_be_read_is_made_anew(tmp_path: Path, damage: str) -> None:
    tried = experiment({"one": SampleConfig()})
    first = run(tried, folder=tmp_path, in_process=True)
    (folders(first)["one"] / "result.json").write_text(damage)
    second = run(tried, folder=tmp_path, in_process=True)
    assert not second.records[0].reused
    assert metrics(first) == metrics(second)


@pytest.mark.parametrize(
    "change",
    [{"metrics": {"size": 99.0}}, {"seed": 1}, {"arm": "two"}, {"config": {}}, {"seconds": 0.0}],
    ids=str,
)
def test_a_result_that_was_edited_is_made_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    tried = experiment({"one": SampleConfig()})
    first = run(tried, folder=tmp_path, in_process=True)
    path = folders(first)["one"] / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    second = run(tried, folder=tmp_path, in_process=True)
    assert not second.records[0].reused
    assert metrics(first) == metrics(second)


@pytest.mark.parametrize("change", [{"seed": 1}, {"arm": "two"}, {"config": {}}], ids=str)
def test_a_result_of_another_trial_is_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    """Whole, with its own checksum, but copied to where it does not belong."""
    tried = experiment({"one": SampleConfig()})
    path = folders(run(tried, folder=tmp_path, in_process=True))["one"] / "result.json"
    contents = json.loads(path.read_text()) | change
    del contents["checksum"]
    trial_module.write_whole(path, contents | {"checksum": trial_module._checksum(contents)})
    assert not run(tried, folder=tmp_path, in_process=True).records[0].reused


def test_fresh_does_not_ask_the_clock(tmp_path: Path, marked: Path) -> None:
    """With a clock that was set back, an earlier result looks as if it were made later."""
    tried = experiment({"one": SampleConfig(marks=str(marked))})
    folder = folders(run(tried, folder=tmp_path, in_process=True))["one"]
    later = time.time() + 1e6
    os.utime(folder / "result.json", (later, later))
    assert not run(tried, folder=tmp_path, in_process=True, fresh=True).records[0].reused
    assert len(marks(marked)) == 2


def test_a_pilot_has_seeds_of_its_own(tmp_path: Path) -> None:
    tried = experiment({"one": SampleConfig()}, seeds=2)
    finished = run(tried, folder=tmp_path, in_process=True, pilot=True)
    assert finished.seeds == (1000, 1001)
    assert finished.is_pilot
    with pytest.raises(ResultsError, match="seeds 1000 to 1001 is a pilot"):
        record(finished)
    assert not run(tried, folder=tmp_path, in_process=True).is_pilot


def test_a_time_between_checkpoints_is_not_negative(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_seconds is -1"):
        run(experiment({"one": SampleConfig()}), folder=tmp_path, checkpoint_seconds=-1)


@dataclass
class Package:
    """A package of trials in a folder, whose modules a test rewrites."""

    folder: Path
    name: str

    def write(self, module: str, text: str) -> None:
        path = self.folder / self.name / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, folder: Path) -> Run:
        """Run its trial as a new process would: nothing of it is loaded, and no hash is remembered."""
        for name in [name for name in sys.modules if name.split(".")[0] == self.name]:
            del sys.modules[name]
        importlib.invalidate_caches()
        digests.code_digest.cache_clear()
        code = importlib.import_module(f"{self.name}.deep.tried")
        arms = {"one": code.Config()}
        scale = sample.Scale(arms, 1)
        tried = sample.Experiment(
            "sample", code.trial, (), {"smoke": scale, "laptop": scale, "gpu": scale}, sample.figure
        )
        return run(tried, folder=folder, in_process=True)


TRIED = """
from dataclasses import dataclass

from ..{direct} import value

@dataclass(frozen=True)
class Config:
    pass

def trial(config, context):
    from {package} import late
    return {{"value": value() + late.value}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path / "code")
    made = Package(tmp_path / "code", f"tried_by_tests_{abs(hash(tmp_path))}")
    made.write("__init__", "base = 0")
    made.write("deep/__init__", "")
    made.write("deep/tried", TRIED.format(direct="direct", package=made.name))
    made.write("direct", "from . import indirect\n\ndef value():\n    return indirect.number")
    made.write("indirect", "number = 1")
    made.write("late", f"import {made.name}.later\n\nvalue = {made.name}.later.value")
    made.write("later", "value = 0")
    made.write("unrelated", "value = 1")
    return made


def test_unchanged_code_reuses_a_result_whatever_else_changes(package: Package, tmp_path: Path) -> None:
    first = package.run(tmp_path / "runs")
    package.write("unrelated", "value = 2")
    package.write("new", "value = 3")
    (package.folder / package.name / "notes.md").write_text("nothing")
    second = package.run(tmp_path / "runs")
    assert second.records[0].reused
    assert metrics(first) == metrics(second) == {("one", 0): {"value": 1.0}}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("deep/tried", TRIED.replace("value()", "10 * value()")),
        ("deep/tried", TRIED + "\n"),
        ("direct", "def value():\n    return 10"),
        ("indirect", "number = 10"),
        ("late", "value = 9"),
        ("later", "value = 9"),
        ("__init__", "base = 1"),
        ("deep/__init__", "from .. import indirect\n\nindirect.number = 10"),
    ],
)
def test_changed_code_never_reuses_a_result(package: Package, tmp_path: Path, module: str, text: str) -> None:
    package.run(tmp_path / "runs")
    package.write(module, text.format(direct="direct", package=package.name) if module == "deep/tried" else text)
    second = package.run(tmp_path / "runs")
    assert not second.records[0].reused
    expected = {"__init__": 1.0}.get(module, 1.0 if text == TRIED + "\n" else 10.0)
    assert metrics(second) == {("one", 0): {"value": expected}}


# Trials that fail


def test_a_failed_trial_is_shown_and_the_others_go_on(tmp_path: Path, marked: Path) -> None:
    arms = {
        "first": SampleConfig("fail", size=7.0, marks=str(marked)),
        "second": SampleConfig("exit"),
        "third": SampleConfig(),
    }
    tried = experiment(arms)
    finished = run(tried, folder=tmp_path, in_process=True)
    assert [record.status for record in finished.records] == ["failed", "failed", "finished"]
    assert [failure.error for failure in finished.failures] == [
        "ArithmeticError: size 7.0 is too much",
        "SystemExit: the trial wants to leave",
    ]
    assert [result.arm for result in finished.trials] == ["third"]
    for failure in finished.failures:
        assert failure.result is None
        assert failure.log is not None
        log = failure.log.read_text()
        assert f"{failure.arm} says hello" in log
        assert "Traceback" in log
        assert failure.error.split(": ")[1] in log
        assert not (failure.log.parent / "result.json").exists()
    # A failure is not kept: the next run tries again.
    again = run(tried, folder=tmp_path, in_process=True)
    assert [record.reused for record in again.records] == [False, False, True]
    assert len(marks(marked)) == 2


def test_a_full_disk_fails_the_trial_and_the_next_run_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, value)

    write_whole = trial_module.write_whole
    tried = experiment({"one": SampleConfig(), "two": SampleConfig()})
    with monkeypatch.context() as patched:
        patched.setattr(trial_module, "write_whole", full)
        finished = run(tried, folder=tmp_path, in_process=True)
    assert len(finished.failures) == 2
    for failure in finished.failures:
        assert "No space left on device" in failure.error
        assert "result.json" in failure.error
    assert len(metrics(run(tried, folder=tmp_path, in_process=True))) == 2


@pytest.mark.parametrize("full_file", ["config.json", "environment.json", "log.txt"])
def test_a_disk_that_is_full_from_the_start_is_a_failed_trial_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_file: str
) -> None:
    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.name.removesuffix(".new") == full_file and mode != "r":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole_open(path, mode, *arguments, **options)

    whole_open = Path.open
    tried = experiment({"one": SampleConfig()})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        finished = run(tried, folder=tmp_path, in_process=True)
    assert ["No space left on device" in failure.error for failure in finished.failures] == [True]
    assert metrics(run(tried, folder=tmp_path, in_process=True))


def test_a_result_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(path: Path, text: str, **options: Any) -> int:
        if path.name.startswith("result.json"):
            whole_write(path, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole_write(path, text, **options)

    whole_write = Path.write_text
    monkeypatch.setattr(Path, "write_text", cut_short)
    finished = run(experiment({"one": SampleConfig()}), folder=tmp_path, in_process=True)
    assert len(finished.failures) == 1
    assert not list(folders(finished)["one"].glob("result.json*"))


def test_a_run_needs_a_seed_a_worker_and_settings_that_there_are(tmp_path: Path) -> None:
    tried = experiment({"one": SampleConfig()})
    with pytest.raises(ValueError, match="0 seeds"):
        run(tried, folder=tmp_path, seeds=0)
    with pytest.raises(ValueError, match="0 workers"):
        run(tried, folder=tmp_path, workers=0)
    with pytest.raises(SettingError, match="speed"):
        run(tried, folder=tmp_path, settings={"speed": "3"})
    assert not list(tmp_path.iterdir())


def test_runs_are_kept_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_RUNS", str(tmp_path / "elsewhere"))
    assert runs_folder() == tmp_path / "elsewhere"
    finished = run(experiment({"one": SampleConfig()}), "smoke", in_process=True)
    assert finished.folder == tmp_path / "elsewhere" / "sample" / "smoke"
    monkeypatch.delenv("ALLYOUNEED_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs_folder() == tmp_path / "runs"


# The same numbers


def test_the_same_trial_gives_the_same_metrics_alone_and_among_workers(tmp_path: Path) -> None:
    arms = {"one": SampleConfig("learn"), "two": SampleConfig("learn", steps=31), "three": SampleConfig()}
    alone = run(experiment(arms, seeds=2), folder=tmp_path / "alone", workers=1)
    again = run(experiment(arms, seeds=2), folder=tmp_path / "again", workers=1)
    among = run(experiment(arms, seeds=2), folder=tmp_path / "among", workers=2)
    assert metrics(alone) == metrics(again) == metrics(among)
    # Another seed is another trial, and nothing of one trial's randomness reaches the next.
    assert len({result.metrics["torch_draw"] for result in alone.trials if result.arm == "one"}) == 2
    draws = [result.metrics["numpy_draw"] for result in alone.trials if result.seed == 0]
    assert draws[0] != draws[2]
    counted = [result for result in among.trials if result.arm == "three"]
    assert [(result.metrics["threads"], result.metrics["threads_allowed"]) for result in counted] == [(1, 1), (1, 1)]
    assert all(result.costs["process"] != os.getpid() for result in counted)


def test_what_happened_in_the_process_before_changes_nothing(tmp_path: Path) -> None:
    arms = {"one": SampleConfig("learn")}
    first = run(experiment(arms), folder=tmp_path / "first", in_process=True)
    torch.randn(1)
    np.random.standard_normal(5)
    assert metrics(run(experiment(arms), folder=tmp_path / "second", in_process=True)) == metrics(first)


# Trials that are killed


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_continues_and_ends_in_the_same_bits(
    tmp_path: Path, marked: Path, stop: signal.Signals
) -> None:
    """SIGKILL takes the whole group at once, in the middle of training; SIGINT is what Ctrl-C sends to it."""
    arms = {
        "done": SampleConfig(marks=str(marked)),
        "one": SampleConfig("learn", steps=60, python_noise=True, marks=str(marked)),
        "two": SampleConfig("learn", steps=61, python_noise=True, marks=str(marked)),
    }
    # In workers, where types are not checked: see `python_noise`.
    whole = run(experiment({arm: arms[arm] for arm in ("one", "two")}), folder=tmp_path / "whole", workers=2)
    marked.unlink()

    # Trials of some ten seconds, in two workers under SIGINT, in one under SIGKILL, which takes the whole group.
    workers = 2 if stop == signal.SIGINT else 1
    began = ("one", "two") if workers == 2 else ("one",)
    command = ("run", "alibi", "--workers", str(workers))
    # Long enough for both to be under way where a worker starts half a minute late.
    process = sample.start_command_line(arms, *command, runs=tmp_path / "runs", pause=0.5)
    own = tmp_path / "runs" / "sample" / "laptop"

    def steps(arm: str) -> list[int]:
        return [step for folder in own.glob(f"{arm}/seed0-*/") for step in sample.steps_logged(folder)]

    try:
        wait_until(lambda: all(len(steps(arm)) > 4 for arm in began), process)
        os.killpg(process.pid, stop)
        _, errors = process.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    reached = {arm: len(steps(arm)) for arm in began}
    assert all(4 < count < 60 for count in reached.values())
    if stop == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "finished trials are kept. To go on: allyouneed run alibi --workers 2" in errors
        assert "Traceback" not in errors
        workers_then = [int(mark.split()[2]) for mark in marks(marked)]
        wait_until(lambda: not any(map(sample.is_running, workers_then)))

    continued = run(experiment(arms), folder=tmp_path / "runs", workers=2)
    assert [record.arm for record in continued.records if record.reused] == ["done"]
    found = metrics(continued)
    assert {key: found[key] for key in metrics(whole)} == metrics(whole)
    for arm in began:
        # It went on from a checkpoint of its last steps, and did not begin anew.
        assert steps(arm)[: reached[arm]] == list(range(1, reached[arm] + 1))
        assert steps(arm)[reached[arm]] in (reached[arm], reached[arm] + 1)
        assert sorted(set(steps(arm))) == list(range(1, arms[arm].steps + 1))
    assert not list(own.rglob("checkpoint.safetensors*"))


def test_two_runs_at_once_share_the_work(tmp_path: Path, marked: Path) -> None:
    arms = {
        arm: SampleConfig("wait", size=size, seconds=0.3, marks=str(marked))
        for size, arm in enumerate(("one", "two", "three"))
    }
    process = sample.start_command_line(arms, "run", "alibi", "--workers", "1", runs=tmp_path, seeds=2)
    try:
        wait_until(lambda: marked.exists(), process)
        here = run(experiment(arms, seeds=2), folder=tmp_path, workers=1)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert len(metrics(here)) == 6
    assert sorted(mark.rsplit(" ", 1)[0] for mark in marks(marked)) == sorted(
        f"{arm} {seed}" for arm in arms for seed in (0, 1)
    )
    # What the one did not run, it took from the other.
    reused = sum(record.reused for record in here.records)
    assert reused >= 1
    assert reused + output.count("kept from an earlier run") == 6
    there = run(experiment(arms, seeds=2), folder=tmp_path, workers=1)
    assert metrics(there) == metrics(here)


def test_fresh_takes_what_another_run_made_meanwhile(tmp_path: Path, marked: Path) -> None:
    """Two runs with `fresh` at once: the second waits for a trial that the first is making, and does not undo it."""
    tried = experiment({"one": SampleConfig(marks=str(marked))})
    folder = folders(run(tried, folder=tmp_path, in_process=True))["one"]
    held = threading.Event()

    def make_it_meanwhile() -> None:
        with FileLock(f"{folder}.lock"):
            held.set()
            time.sleep(0.5)
            contents = json.loads((folder / "result.json").read_text())
            del contents["checksum"]
            contents["attempt"] = "another"
            trial_module.write_whole(folder / "result.json", contents | {"checksum": trial_module._checksum(contents)})
            # Of no use to tell when it was made: clocks may have been set back.
            os.utime(folder / "result.json", (0, 0))

    other = threading.Thread(target=make_it_meanwhile)
    other.start()
    held.wait()
    here = run(tried, folder=tmp_path, in_process=True, fresh=True)
    other.join()
    assert here.records[0].reused
    assert len(marks(marked)) == 1


@pytest.mark.filterwarnings("ignore:.*have been cancelled")
def test_an_error_outside_the_trials_stops_the_workers(tmp_path: Path, marked: Path) -> None:
    """As when Ctrl-C comes while the run shows its progress, and not while it waits for a trial."""
    arms = {"quick": SampleConfig(), "slow": SampleConfig("wait", seconds=60, marks=str(marked))}

    def watch(progress: Progress) -> None:
        if progress.records:
            wait_until(lambda: marked.exists())
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(experiment(arms), folder=tmp_path, workers=2, watch=watch)
    (mark,) = marks(marked)
    wait_until(lambda: not sample.is_running(int(mark.split()[2])))
    assert time.monotonic() - began < 55
    # Until here it was held, and with it whatever a garbage collector would have stopped.
    del stopped


def test_a_worker_that_is_killed_fails_its_trial_alone(tmp_path: Path, marked: Path) -> None:
    """The pool dies with it. A trial beside it, however long, is not to blame; what had not begun is still `fresh`."""
    arms = {
        "killer": SampleConfig("kill", seconds=0.3, marks=str(marked)),
        "beside": SampleConfig("wait", seconds=1.0, marks=str(marked)),
        "later": SampleConfig(marks=str(marked)),
    }
    tried = experiment(arms)
    # "later" has a result, which `fresh` must throw away also after the pool died.
    run(experiment({"later": arms["later"]}), folder=tmp_path, workers=1)
    finished = run(tried, folder=tmp_path, workers=2, fresh=True)
    assert {record.arm: record.status for record in finished.records} == {
        "killer": "failed",
        "beside": "finished",
        "later": "finished",
    }
    (failure,) = finished.failures
    assert failure.error.startswith("its process died")
    assert failure.log is not None
    assert "killer says hello" in failure.log.read_text()
    begun = [mark.split()[0] for mark in marks(marked)]
    assert begun.count("killer") == 2
    assert begun.count("later") == 2


def test_with_one_worker_too_the_run_survives_a_trial_s_death(tmp_path: Path, marked: Path) -> None:
    arms = {"killer": SampleConfig("kill"), "after": SampleConfig(marks=str(marked))}
    finished = run(experiment(arms), folder=tmp_path, workers=1)
    assert [failure.arm for failure in finished.failures] == ["killer"]
    assert [int(mark.split()[2]) == os.getpid() for mark in marks(marked)] == [False]


@dataclass(frozen=True)
class Deadly(SampleConfig):
    """A configuration that ends the process that reads it, before the trial begins."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_a_worker_that_dies_before_its_trial_begins_does_not_keep_the_run_forever(tmp_path: Path) -> None:
    finished = run(experiment({"one": Deadly(), "two": Deadly()}), folder=tmp_path, workers=2)
    assert [failure.error.split(":")[0] for failure in finished.failures] == ["its process died"] * 2


# What is shown


@pytest.mark.parametrize("damage", ["", "[]", '{"step": 1}', '{"step": 1, "steps": 0, "loss": null}', '{"step": "a"}'])
def test_progress_that_cannot_be_read_is_none(tmp_path: Path, damage: str) -> None:
    (task,) = plan(experiment({"one": SampleConfig()}), {"one": SampleConfig()}, (0,), tmp_path)
    task.folder.mkdir(parents=True)
    (task.folder / "progress.json").write_text(damage)
    assert Progress([task]).of_arm("one") == (0.0, 1, None)


@pytest.mark.parametrize("steps", [None, 0.25])
def test_progress_counts_what_is_done_and_under_way(tmp_path: Path, steps: float | None) -> None:
    tasks = plan(experiment(sample.TWO_ARMS), {"one": SampleConfig(), "two": SampleConfig()}, (0, 1), tmp_path)
    progress = Progress(tasks)
    assert progress.of_arm("one") == (0.0, 2, None)
    progress.records.append(trial_module.Record("one", 0, "finished"))
    if steps is not None:
        folder = next(task.folder for task in tasks if (task.arm, task.seed) == ("one", 1))
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text('{"step": 10, "steps": 40, "loss": 2.5, "seconds": 3}')
    done, total, loss = progress.of_arm("one")
    assert (done, total, loss) == (pytest.approx(1 + 0.99 * (steps or 0)), 2, None if steps is None else 2.5)
    assert progress.of_arm("two") == (0.0, 2, None)


def test_where_there_is_no_terminal_each_trial_has_a_line(tmp_path: Path) -> None:
    text = StringIO()
    arms = {"one": SampleConfig(), "two": SampleConfig("fail", size=3.0)}
    for _ in range(2):
        with display(Console(file=text, width=200)) as watch:
            run(experiment(arms), folder=tmp_path, in_process=True, watch=watch)
    lines = text.getvalue().splitlines()
    failed = "2/2 two, seed 0: failed, ArithmeticError: size 3.0 is too much"
    assert lines == [
        "2 trials",
        "1/2 one, seed 0: finished, 0 s",
        failed,
        "2 trials",
        "1/2 one, seed 0: finished, 0 s, kept from an earlier run",
        failed,
    ]


def test_bars_stay_on_the_terminal_and_out_of_the_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial in the run's own process sends what it prints to its log, while the bars go on."""
    monkeypatch.setenv("TERM", "xterm")
    with display(Console(force_terminal=True)) as watch:
        finished = run(experiment({"one": SampleConfig("wait", seconds=1.5)}), folder=tmp_path, workers=1, watch=watch)
    shown = capsys.readouterr().out
    assert "1/1 trials" in shown
    assert "says hello" not in shown
    assert (folders(finished)["one"] / "log.txt").read_text() == "one says hello\n"
