"""Shared stages: made once, whole, by whoever comes first; never those of other code, another configuration or seed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allyouneed.evidence import Context, Stage, Task
from allyouneed.evidence.stages import Made, prepare
from allyouneed.evidence.trial import run_trial

sys.path.insert(0, str(Path(__file__).parent))

import sample
import staged
from staged import COSTLY, CostlyConfig


def task(root: Path, **changes: Any) -> Task:
    config = changes.pop("config", staged.TrialConfig())
    return replace(Task(staged.trial, "one", 0, config, root / "room" / "one", stages=root / "stages"), **changes)


def made(folder: Path, config: CostlyConfig | None = None, seed: int = 0, **changes: Any) -> Made:
    return prepare(COSTLY, config or CostlyConfig(), seed, task(folder, **changes))


def weights(stage: Made) -> torch.Tensor:
    return staged.read(stage.folder)


def begun(folder: Path) -> int:
    path = folder / "stages" / "begun.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_stage_is_made_once_and_read_by_trials_of_any_room(tmp_path: Path) -> None:
    first = run_trial(task(tmp_path))
    second = run_trial(task(tmp_path, folder=tmp_path / "another room" / "two", arm="two", seed=0))
    assert first.result is not None and second.result is not None, (first.error, second.error)
    assert begun(tmp_path) == 1
    assert first.result.metrics == second.result.metrics
    assert first.result.stages == second.result.stages
    [(name, seconds)] = first.result.stages.items()
    assert name.startswith("costly-seed0-") and seconds > 0
    # The stage's time is told once, and is not the trial's too.
    assert first.result.seconds < 10


def test_its_time_is_not_the_trial_s(tmp_path: Path) -> None:
    result = run_trial(task(tmp_path, config=staged.TrialConfig(pause=0.5))).result
    assert result is not None
    [seconds] = result.stages.values()
    assert seconds >= 0.5
    assert result.seconds < 0.4


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"config": CostlyConfig(size=4)}, {"precision": "bf16-mixed"}],
    ids=str,
)
def test_another_seed_configuration_or_precision_is_another_stage(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = made(tmp_path)
    assert made(tmp_path, **changes).folder != first.folder
    assert begun(tmp_path) == 2


def test_changed_code_is_another_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"stage_by_tests_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text("def make(config, context):\n    (context.folder / 'a').write_text('1')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folders = set()
    for text in ("", "# changed\n", ""):
        path = tmp_path / f"{name}.py"
        path.write_text(path.read_text().replace("# changed\n", "") + text)
        sys.modules.pop(name, None)
        from allyouneed.evidence.digests import code_digest

        code_digest.cache_clear()
        module = __import__(name)
        folders.add(prepare(Stage("written", module.make), CostlyConfig(), 0, task(tmp_path)).folder)
    assert len(folders) == 2


def test_a_trial_draws_the_same_whether_it_made_the_stage_or_found_it(tmp_path: Path) -> None:
    first, second = run_trial(task(tmp_path)), run_trial(task(tmp_path), fresh=True)
    assert first.result is not None and second.result is not None
    assert not second.reused
    assert begun(tmp_path) == 1
    assert first.result.metrics == second.result.metrics


def test_nobody_sees_half_a_stage_and_two_at_once_make_one(tmp_path: Path) -> None:
    results: list[Made] = []
    config = CostlyConfig(pause=0.3)
    threads = [threading.Thread(target=lambda: results.append(made(tmp_path, config))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for folder in (tmp_path / "stages").glob("costly-*"):
            if folder.is_dir() and not folder.name.endswith(".making"):
                assert (folder / "stage.json").exists() and (folder / "weights.safetensors").exists()
        time.sleep(0.01)
    assert len(results) == 2 and results[0] == results[1]
    assert begun(tmp_path) == 1


def test_a_stage_that_is_killed_goes_on_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    """By SIGKILL, in the middle of its training."""
    whole = made(tmp_path / "whole", CostlyConfig(steps=30))
    environment = {**os.environ, staged.PAUSE: "0.1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(staged.__file__)), str(tmp_path / "killed"), "30"]
    process = subprocess.Popen(program, env=environment, start_new_session=True)

    def steps() -> list[int]:
        return [
            step for folder in (tmp_path / "killed" / "stages").glob("*.making") for step in sample.steps_logged(folder)
        ]

    try:
        end = time.monotonic() + 60
        while len(steps()) <= 4:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    reached = len(steps())
    assert 4 < reached < 30
    continued = made(tmp_path / "killed", CostlyConfig(steps=30))
    assert continued.folder.name == whole.folder.name
    assert torch.equal(weights(continued), weights(whole))
    logged = sample.steps_logged(continued.folder)
    assert logged[:reached] == list(range(1, reached + 1)) and logged[reached] in (reached, reached + 1)
    assert not list(continued.folder.glob("checkpoint*"))
    assert not list((tmp_path / "killed" / "stages").glob("*.making"))


def test_a_stage_that_fails_fails_its_trial_and_is_tried_again(tmp_path: Path) -> None:
    record = run_trial(task(tmp_path, config=staged.TrialConfig(fails=True)))
    assert (record.status, record.error) == ("failed", "ArithmeticError: size -1 is too little")
    assert begun(tmp_path) == 1
    assert run_trial(task(tmp_path, config=staged.TrialConfig(fails=True))).status == "failed"
    assert begun(tmp_path) == 2


@pytest.mark.parametrize("damage", ["edited", "missing", "added", "no card", "half a card"])
def test_what_is_damaged_is_named_and_made_anew(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = made(tmp_path)
    before = weights(first)
    file, card = first.folder / "weights.safetensors", first.folder / "stage.json"
    if damage == "edited":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    elif damage == "added":
        (first.folder / "more").touch()
    elif damage == "no card":
        card.unlink()
    else:
        card.write_text(card.read_text()[:20])
    # Files are compared once a process: this stands for another one.
    from allyouneed.evidence import stages

    stages._intact.cache_clear()
    again = made(tmp_path)
    assert torch.equal(weights(again), before)
    assert begun(tmp_path) == 2
    assert ("is damaged, or was changed" in capsys.readouterr().out) == (damage != "no card")


@dataclass(frozen=True)
class Upper:
    size: int = 3


def make_upper(config: Upper, context: Context) -> None:
    lower = context.stage(COSTLY, CostlyConfig(config.size))
    (context.folder / "upper.txt").write_text(str(float(staged.read(lower).sum())))


def test_a_stage_may_stand_on_another_and_tells_of_both(tmp_path: Path) -> None:
    upper = prepare(Stage("upper", make_upper), Upper(), 7, task(tmp_path))
    assert [name.split("-")[:2] for name in upper.seconds] == [["costly", "seed7"], ["upper", "seed7"]]
    lower = made(tmp_path, CostlyConfig(3), seed=7)
    assert begun(tmp_path) == 1
    assert float((upper.folder / "upper.txt").read_text()) == float(weights(lower).sum())
    assert json.loads((upper.folder / "stage.json").read_text())["config"] == {"size": 3}


@pytest.mark.parametrize("name", ["", "Upper", "a-b", "../a"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a stage's name"):
        Stage(name, make_upper)
