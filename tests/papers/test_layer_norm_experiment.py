"""The experiment of layer normalisation: every line at the smoke scale, and the GPU's configurations on a CPU."""

from dataclasses import replace
from pathlib import Path

import pytest

from allyouneed.evidence import Context, Record, Task, TrialResult
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import run_trial
from allyouneed.papers.layer_norm.experiment import (
    CLAIMS,
    COLUMNS,
    EXPERIMENT,
    TUNED,
    table_claims,
)
from allyouneed.papers.layer_norm.invariances import NORMS, TABLE_1
from allyouneed.papers.layer_norm.trials import LayerNormConfig, trial

pytestmark = pytest.mark.usefixtures("standins")

SMOKE = EXPERIMENT.scales["smoke"].arms


def tried(arm: str, config: LayerNormConfig, folder: Path, seed: int = 0) -> TrialResult:
    record = run_trial(Task(trial, arm, seed, config, folder / arm))
    assert record.result is not None, record.error
    return record.result


def test_smoke_scale_runs_judges_and_draws(tmp_path: Path):
    trials = [tried(arm, config, tmp_path) for arm, config in SMOKE.items()]
    for claim in CLAIMS:
        finding = claim.judge(trials, [0])
        assert not finding.missing
        # An identity needs no training.
        assert finding.verdict == ("reproduced" if "invariant" in claim.id else "inconclusive")
    text = svg(EXPERIMENT.figure(trials))
    for label in ("LN-LSTM", "BN-LSTM", "layer norm, batch 4", "batch norm, batch 16", "test error"):
        assert label in text


def test_the_arms_of_a_task_differ_in_their_norm_and_what_was_tuned():
    for name, scale in EXPERIMENT.scales.items():
        for of_task in (["lstm", "bn_lstm", "ln_lstm"], *([f"{n}_{s}" for n in NORMS_TRIED] for s in ("large", "4"))):
            bare = {
                replace(scale.arms[arm], norm="none", learning_rate=1.0, forget_bias=0.0, clip=1.0, momentum=0.1)
                for arm in of_task
            }
            assert len(bare) == 1, name
            assert {scale.arms[arm].norm for arm in of_task} == {"none", "batch", "layer"}
    assert set(TUNED) == {arm for arm in SMOKE if not arm.startswith("table")}


NORMS_TRIED = ("none", "batch", "layer")


@pytest.mark.parametrize("arm", [arm for arm in SMOKE if not arm.startswith("table")])
def test_gpu_configurations_take_a_step(arm: str, tmp_path: Path):
    config = EXPERIMENT.scales["gpu"].arms[arm]
    shrunk = replace(config, batch=2, steps=1, evaluations=1, length=8, scored=16, images=2)
    metrics = tried(arm, shrunk, tmp_path).metrics
    assert 0 <= metrics["loss" if config.task == "language" else "error"] < 10


@pytest.mark.parametrize("arm", ["bn_lstm", "layer_4"])
def test_an_interrupted_trial_ends_as_an_uninterrupted_one(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = replace(SMOKE[arm], steps=6, images=24, evaluations=3)
    whole = tried(arm, config, tmp_path / "whole")
    task = Task(trial, arm, 0, config, tmp_path / "broken", checkpoint_seconds=0.0)
    log = Context.log

    def fail(self: Context, step: int, steps: int, **values: float) -> None:
        log(self, step, steps, **values)
        if step == 5:
            raise KeyError("the lights went out")

    with monkeypatch.context() as patched:
        patched.setattr(Context, "log", fail)
        assert isinstance(broken := run_trial(task), Record) and "lights" in broken.error
    resumed = run_trial(task)
    assert resumed.result is not None and resumed.result.metrics == whole.metrics
    steps = [line for line in (task.folder / "curve.jsonl").read_text().splitlines() if '"step": 5' in line]
    assert len(steps) == 2


def test_seeds_differ_and_repeat(tmp_path: Path):
    first = tried("ln_lstm", SMOKE["ln_lstm"], tmp_path / "a").metrics
    assert first == tried("ln_lstm", SMOKE["ln_lstm"], tmp_path / "b").metrics
    assert first != tried("ln_lstm", SMOKE["ln_lstm"], tmp_path / "c", seed=1).metrics


def test_claims_would_state_every_cell_of_table_1():
    statements = {claim.id: claim.statement for norm in NORMS for claim in table_claims(norm)}
    for norm in NORMS:
        for column, words in COLUMNS.items():
            holds = column in TABLE_1[norm]
            assert (words in statements[f"{norm}_norm_invariant"]) is holds
            assert (words in statements[f"{norm}_norm_not_invariant"]) is not holds
