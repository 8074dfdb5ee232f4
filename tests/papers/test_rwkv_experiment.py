"""RWKV's experiment: models of a size, what is counted, and every scale can run."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from allyouneed.evidence import SCALES, Run, Task, TrialResult, run
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import run_trial
from allyouneed.nn import KeyValueCache
from allyouneed.papers.rwkv import Rwkv, RwkvState, trials
from allyouneed.papers.rwkv.experiment import CLAIMS, EXPERIMENT
from allyouneed.papers.rwkv.figure import STEPPED, WRITTEN
from allyouneed.papers.rwkv.trials import MODELS, RwkvTrialConfig, build, held_bytes, trial
from allyouneed.training import next_token_loss

GPU: Mapping[str, RwkvTrialConfig] = EXPERIMENT.scales["gpu"].arms
SMOKE: Mapping[str, RwkvTrialConfig] = EXPERIMENT.scales["smoke"].arms


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def tried(config: RwkvTrialConfig, folder: Path, **options: Any) -> TrialResult:
    record = run_trial(Task(trial, "arm", 0, config, folder / "arm", **options))
    assert record.result is not None, record.error
    return record.result


def test_every_claim_is_judged(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in CLAIMS]
    assert not any(finding.missing for finding in findings.values())
    # One seed is too few for the others.
    assert [name for name, finding in findings.items() if finding.verdict != "inconclusive"] == ["state_is_constant"]
    assert findings["state_is_constant"].verdict == "reproduced"
    for result in smoke.trials:
        assert all(math.isfinite(value) for value in {**result.metrics, **result.costs}.values())
        if result.arm in MODELS:
            assert 4 < result.metrics["loss"] < math.log(256) + 0.5
            assert result.metrics["training_tokens"] == 3 * 64


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    for arm in ("rwkv", "transformer", "written_x4", "step_x2"):
        (before,) = (result for result in smoke.trials if result.arm == arm)
        assert tried(SMOKE[arm], tmp_path / arm).metrics == before.metrics


def test_the_figure_has_every_line(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    drawn: list[dict[str, list[float]]] = [
        {
            str(line.get_label()): np.asarray(line.get_xdata()).tolist()
            for line in axes.lines
            if not str(line.get_label()).startswith("_")
        }
        for axes in figure.axes
    ]
    written, stepped = [4 * times for times in WRITTEN.values()], [16 * times for times in STEPPED.values()]
    assert drawn[0] == drawn[1] == dict.fromkeys(["transformer with cache", "RWKV"], written)
    steps = ["attention written out", "RWKV", "torch's fused attention"]
    assert drawn[2] == drawn[3] == dict.fromkeys(steps, stepped)
    assert "tokens written" in svg(figure)


@pytest.mark.filterwarnings("ignore:No artists with labels")
@pytest.mark.parametrize("without", ["written", "step", "written_x16", "step_x1"])
def test_the_figure_of_an_unfinished_run_is_drawn(smoke: Run, without: str) -> None:
    assert "megabytes" in svg(EXPERIMENT.figure([r for r in smoke.trials if not r.arm.startswith(without)]))


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_what_is_compared(scale: Any) -> None:
    arms: dict[str, RwkvTrialConfig] = dict(EXPERIMENT.scales[scale].arms)
    assert arms["rwkv"] == replace(arms["transformer"], model="rwkv", learning_rate=arms["rwkv"].learning_rate)
    for group in (WRITTEN, STEPPED):
        first = arms[next(iter(group))]
        for arm, times in group.items():
            assert arms[arm] == replace(first, length=times * first.length)
    if scale != "smoke":
        assert arms["written_x16"].length == 8192


@pytest.mark.parametrize("scale", SCALES)
def test_the_models_are_of_a_size(scale: Any) -> None:
    config: RwkvTrialConfig = EXPERIMENT.scales[scale].arms["rwkv"]
    with torch.device("meta"):
        built: list[Any] = [build(config, name) for name in MODELS]
    matrices = [[tuple(w.shape) for w in model.parameters() if w.squeeze().dim() == 2] for model in built]
    assert sum(map(math.prod, matrices[0])) == sum(map(math.prod, matrices[1]))
    whole = [sum(weight.numel() for weight in model.parameters()) for model in built]
    assert whole[0] == pytest.approx(whole[1], rel=0.04 if scale == "smoke" else 0.003)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_each_next_token(name: Any) -> None:
    torch.manual_seed(0)
    model: Any = build(SMOKE["rwkv"], name)
    batch = torch.randint(256, (3, 11))
    total, count = next_token_loss(model, batch)
    expected = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
    assert count == 30
    torch.testing.assert_close(total, expected)


def test_bytes_that_are_held() -> None:
    """Room that is not used counts, memory that two tensors share counts once, and a view counts with all behind it."""
    cache = KeyValueCache(2, capacity=32)
    for layer in cache.layers:
        layer.append(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    assert held_bytes(cache) == 4 * 2 * 2 * 32 * 2 * 4
    state = RwkvState(1)
    assert held_bytes(state) == 0
    whole = torch.zeros(10, 3)
    assert held_bytes([whole[0], (whole[1], {"not": "looked at"})]) == 120


def test_the_cost_of_writing_is_that_of_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a clock that knows how much each model holds: RWKV's time is constant, the transformer's its tokens."""
    spent = [0.0]
    monkeypatch.setattr(trials, "clock", lambda device: spent[0])
    plain: Any = Rwkv.last_logits

    def rwkv(self: Any, given: Tensor, **options: Any) -> Tensor:
        spent[0] += 0.002
        return plain(self, given, **options)

    attending: Any = trials.Decoder.last_logits

    def transformer(self: Any, given: Tensor, **options: Any) -> Tensor:
        spent[0] += 0.001 * (1 + len(options["cache"]))
        return attending(self, given, **options)

    monkeypatch.setattr(Rwkv, "last_logits", rwkv)
    monkeypatch.setattr(trials.Decoder, "last_logits", transformer)
    costs = tried(replace(SMOKE["written_x1"], length=40, turn=4), tmp_path).costs
    assert costs["rwkv_milliseconds"] == pytest.approx(2)
    assert costs["rwkv_seconds"] == pytest.approx(40 * 0.002)
    assert costs["rwkv_over_begun"] == pytest.approx(1)
    # Of the last turn: 37, 38, 39 and 40 tokens. A text just begun has 1 to 4, of which the first does not count.
    assert costs["transformer_milliseconds"] == pytest.approx(38.5)
    assert costs["transformer_over_begun"] == pytest.approx(39 / 3)
    assert costs["transformer_seconds"] == pytest.approx(sum(range(1, 41)) / 1000)
    assert costs["seconds_over_transformer"] == pytest.approx(0.08 / 0.82)


def test_a_turn_that_does_not_divide_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match="length 100 must be a multiple of the turn"):
        RwkvTrialConfig("writing", 100)


@pytest.mark.parametrize("arm", ["rwkv", "transformer", "written_x1", "step_x1"])
def test_the_gpu_configurations_are_stepped(arm: str, tmp_path: Path) -> None:
    """On a CPU, narrower and shorter, in their own precision and with byte pairs."""
    small: dict[str, Any] = {"width": 64, "layers": 2, "heads": 2, "length": 32, "turn": 16, "repeats": 1}
    if arm in MODELS:
        small |= {"step_tokens": 64, "steps": 2, "vocabulary": 256, "evaluated_tokens": 256}
        assert GPU[arm].vocabulary == 4096
    result = tried(replace(GPU[arm], **small), tmp_path, precision="bf16-mixed")
    assert {claim.test.metric for claim in CLAIMS if arm in claim.test.arms} <= {*result.metrics, *result.costs}
