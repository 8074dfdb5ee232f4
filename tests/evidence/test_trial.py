"""A trial: its context, its configuration as plain values, and what its result depends on."""

import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allyouneed.evidence import Context, Task, TrialResult, digests
from allyouneed.evidence.digests import as_json, code_digest, digest
from allyouneed.evidence.trial import run_trial

sys.path.insert(0, str(Path(__file__).parent))

import sample
from sample import SampleConfig


def task(folder: Path, trial: Any = sample.trial, config: Any = None, **changes: Any) -> Task:
    return Task(trial, "one", 0, config or SampleConfig(), folder / "one", **changes)


# Configurations


@dataclass(frozen=True)
class Inner:
    factor: float = 0.5


@dataclass(frozen=True)
class OtherInner:
    factor: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str = "outer"
    inner: Any = Inner()
    pair: tuple[float, float] = (0.9, 0.95)
    nothing: None = None
    path: Path = Path("data")


def test_a_configuration_is_told_as_plain_values() -> None:
    told = as_json(Outer())
    assert told == {
        "name": "outer",
        "inner": {"class": "Inner", "factor": 0.5},
        "pair": [0.9, 0.95],
        "nothing": None,
        "path": repr(Path("data")),
    }
    assert json.loads(json.dumps(told)) == told


def test_parts_of_another_class_make_another_configuration(tmp_path: Path) -> None:
    assert as_json(Outer(inner=OtherInner())) != as_json(Outer())
    configs = (Outer(), Outer(inner=OtherInner()), Outer(inner=Inner(0.6)))
    digests = [digest(task(tmp_path, config=config)) for config in configs]
    assert len(set(digests)) == 3
    assert digest(task(tmp_path / "elsewhere", config=Outer())) == digests[0]


@pytest.mark.parametrize(
    "changes", [{"config": SampleConfig(size=2)}, {"device": "cuda"}, {"precision": "bf16-mixed"}], ids=str
)
def test_a_digest_depends_on_configuration_device_and_precision(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert digest(replace(task(tmp_path), **changes)) != digest(task(tmp_path))


def test_a_digest_depends_on_nothing_that_changes_no_result(tmp_path: Path) -> None:
    changed = replace(task(tmp_path), folder=tmp_path / "two", arm="two", seed=1, checkpoint_seconds=1.0)
    assert digest(changed) == digest(task(tmp_path))


@pytest.mark.parametrize("package", ["torch", "numpy"])
def test_another_version_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    import importlib.metadata

    before, there = digest(task(tmp_path)), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0.0" if name == package else there(name))
    assert digest(task(tmp_path)) != before


def test_another_python_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(task(tmp_path))
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert digest(task(tmp_path)) != before


# Code


def test_the_code_of_a_room_is_what_its_trial_runs_on_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()

    def source(name: str) -> Path | None:
        path = find(name)
        if path is not None:
            found.add(name)
        return path

    find = digests._source
    monkeypatch.setattr(digests, "_source", source)
    code_digest.__wrapped__("allyouneed.papers.alibi.experiment")
    assert {
        "allyouneed.papers.alibi.experiment",
        "allyouneed.papers.alibi.alibi",
        "allyouneed.papers.alibi",
        "allyouneed.nn.attention",
        "allyouneed.nn.positions",
        "allyouneed.data.texts",
        "allyouneed.data.batches",
        "allyouneed.text.tokenizers",
        "allyouneed.training.loop",
        "allyouneed.training.checkpoint",
        "allyouneed.evidence.trial",
    } <= found
    running = {f"allyouneed.evidence.{part}" for part in ("trial", "context", "stages")}
    assert {name for name in found if name.startswith("allyouneed.evidence")} == running
    assert not found & {"allyouneed.cli", "allyouneed.library", "allyouneed.catalog"}


def test_code_that_is_named_in_a_string_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As rooms are that load a model by its architecture."""
    name = f"named_by_tests_{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "trial.py").write_text(f'READER = "{name}.reader:Reader"\n')
    digests_seen = []
    for text in ("class Reader: pass", "class Reader: changed = True"):
        (tmp_path / name / "reader.py").write_text(text)
        digests_seen.append(code_digest.__wrapped__(f"{name}.trial"))
    assert digests_seen[0] != digests_seen[1]


def test_a_trial_whose_code_is_in_no_file_is_refused(tmp_path: Path) -> None:
    """Its results could not be told from those of the next thing typed."""
    typed = types.ModuleType("typed_at_a_prompt")
    exec("def trial(config, context):\n    return {'value': 1.0}", typed.__dict__)
    with pytest.raises(ValueError, match="typed_at_a_prompt is in no file"):
        digest(task(tmp_path, typed.trial))


# Contexts


def learn_nothing(config: SampleConfig, context: Context) -> Mapping[str, float]:
    for step in range(1, config.steps + 1):
        context.log(step, config.steps, loss=1 / step, learning_rate=0.1)
    context.costs["gigabytes"] = torch.tensor(2.5)  # pyright: ignore[reportArgumentType]
    return {"draw": torch.rand(()), "count": config.steps, "infinite": math.inf}  # pyright: ignore[reportReturnType]


def test_a_context_logs_a_curve_and_shows_progress(tmp_path: Path) -> None:
    tried = task(tmp_path, learn_nothing, SampleConfig(steps=5))
    record = run_trial(tried)
    assert record.status == "finished", record.error
    lines = [json.loads(line) for line in (tried.folder / "curve.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "steps": 5, "loss": 1 / step, "learning_rate": 0.1} for step in range(1, 6)]
    shown = json.loads((tried.folder / "progress.json").read_text())
    assert (shown["step"], shown["steps"], shown["loss"]) == (5, 5, 0.2)
    assert 0 < shown["seconds"] <= record.result.seconds  # pyright: ignore[reportOptionalMemberAccess]


def test_metrics_and_costs_are_plain_numbers(tmp_path: Path) -> None:
    tried = task(tmp_path, learn_nothing, SampleConfig(steps=5))
    first, kept = run_trial(tried), run_trial(tried)
    assert kept == replace(first, reused=True)
    assert isinstance(kept.result, TrialResult)
    assert {type(value) for value in [*kept.result.metrics.values(), *kept.result.costs.values()]} == {float}
    assert kept.result.costs == {"gigabytes": 2.5}
    assert (kept.result.metrics["count"], kept.result.metrics["infinite"]) == (5.0, math.inf)
    assert kept.result.config == as_json(tried.config)


def test_the_time_of_attempts_that_were_stopped_counts(tmp_path: Path) -> None:
    tried = task(tmp_path, learn_nothing)
    tried.folder.mkdir()
    (tried.folder / "progress.json").write_text('{"step": 3, "steps": 5, "loss": 1.0, "seconds": 1000.0}')
    result = run_trial(tried).result
    assert result is not None
    assert 1000 < result.seconds < 1060


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"seconds": "long"}', '{"seconds": -5}', '{"seconds": NaN}'])
def test_damaged_progress_is_named_and_counts_as_none(tmp_path: Path, damage: str) -> None:
    tried = task(tmp_path, learn_nothing)
    tried.folder.mkdir()
    (tried.folder / "progress.json").write_text(damage)
    record = run_trial(tried)
    assert record.result is not None and record.result.seconds < 60
    assert "progress.json is damaged" in (tried.folder / "log.txt").read_text()


def test_what_a_killed_trial_logged_is_whole_lines(tmp_path: Path) -> None:
    """Nothing waits in a buffer, of which a kill would leave a part before the lines that the next attempt adds."""
    tried = task(tmp_path)
    tried.folder.mkdir()
    context = Context(tried)
    for step in range(1, 300):
        context.log(step, 1000, loss=1.0)
        lines = (tried.folder / "curve.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == step == len(lines)
    context.close()


def test_further_checkpoints_are_files_of_their_own_and_go_with_the_first(tmp_path: Path) -> None:
    seen: list[Path] = []

    def train_twice(config: SampleConfig, context: Context) -> Mapping[str, float]:
        checkpoints = [context.checkpoint, context.further_checkpoint("a"), context.further_checkpoint("b")]
        assert {checkpoint.every_seconds for checkpoint in checkpoints} == {7.0}
        seen.extend(checkpoint.path for checkpoint in checkpoints)
        for path in seen:
            path.touch()
        return {}

    assert run_trial(task(tmp_path, train_twice, checkpoint_seconds=7.0)).status == "finished"
    assert len(set(seen)) == 3
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("returned", "error"), [({"loss": "low"}, "low"), (None, "NoneType"), ({"loss": [1.0]}, "list")], ids=str
)
def test_a_metric_that_is_no_number_fails_the_trial(tmp_path: Path, returned: Any, error: str) -> None:
    record = run_trial(task(tmp_path, lambda config, context: returned))
    assert record.status == "failed"
    assert error in record.error


def test_a_device_that_there_is_not_fails_the_trial(tmp_path: Path) -> None:
    record = run_trial(task(tmp_path, device="abacus"))
    assert record.status == "failed"
    assert "abacus" in record.error


def test_generators_begin_with_the_seed(tmp_path: Path) -> None:
    def draws(seed: int, folder: str) -> Mapping[str, float]:
        result = run_trial(replace(task(tmp_path / folder), seed=seed)).result
        assert result is not None
        return {name: value for name, value in result.metrics.items() if name.endswith("draw")}

    assert draws(3, "a") == draws(3, "b")
    assert not set(draws(3, "a").values()) & set(draws(4, "c").values())
