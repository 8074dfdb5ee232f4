"""LLaMA's experiment: arms have the same compute and the same parameters, and every scale can run."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.evidence import SCALES, Context, Run, Task, run
from allyouneed.evidence.figures import svg
from allyouneed.nn import LearnedPositions, RMSNorm, RotaryPositions
from allyouneed.papers.llama1 import Llama, trials
from allyouneed.papers.llama1.experiment import EXPERIMENT
from allyouneed.papers.llama1.trials import POINTS, Llama1Config, build
from allyouneed.training import next_token_loss

EVERY_ARM = [
    pytest.param(scale, arm, id=f"{arm} at {scale} scale") for scale in SCALES for arm in EXPERIMENT.scales[scale].arms
]
PAIR = ("large_whole", "gpt2_whole")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def test_every_claim_finds_its_metric(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    assert not any(finding.missing for finding in findings.values())
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
    for result in smoke.trials:
        assert all(math.isfinite(value) for value in result.metrics.values())
        assert 1 < result.metrics["loss"] < math.log(256) + 1
        assert result.costs["step_seconds"] > 0


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    one = dataclasses.replace(EXPERIMENT.scales["smoke"], arms={"a": EXPERIMENT.scales["smoke"].arms["small_half"]})
    again = run(
        dataclasses.replace(EXPERIMENT, scales=dict.fromkeys(SCALES, one), claims=()),
        "smoke",
        folder=tmp_path,
        in_process=True,
    )
    assert [result.metrics for result in again.trials] == [
        result.metrics for result in smoke.trials if result.arm == "small_half"
    ]


def test_the_figure_has_every_arm(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    over_tokens, over_compute = figure.axes
    labels = [
        [str(line.get_label()) for line in axes.lines if not str(line.get_label()).startswith("_")]
        for axes in (over_tokens, over_compute)
    ]
    assert [len(found) for found in labels] == [3, 4]
    assert labels[0] == labels[1][:3] and "GPT-2" in labels[1][3]
    points = {str(line.get_label()): np.size(line.get_xdata()) for line in over_compute.lines}
    assert [points[label] for label in labels[1]] == [2, 2, 1, 1]
    assert "tokens" in svg(figure)


@pytest.mark.parametrize("without", ["small", "medium", "gpt2", "large"])
def test_the_figure_of_an_unfinished_run_is_drawn(smoke: Run, without: str) -> None:
    assert "loss" in svg(EXPERIMENT.figure([result for result in smoke.trials if not result.arm.startswith(without)]))


@pytest.mark.parametrize("scale", SCALES, ids=lambda name: f"{name} scale")
def test_arms_differ_only_in_what_is_compared(scale: Any) -> None:
    arms: dict[str, Llama1Config] = dict(EXPERIMENT.scales[scale].arms)
    alike: dict[str, Any] = {"block": "llama", "width": 1, "compute": 1.0, "equal": False, "learning_rate": 1.0}
    assert len({dataclasses.replace(config, **alike) for config in arms.values()}) == 1
    assert {arm for arm, config in arms.items() if config.block == "gpt2"} == {"gpt2_whole"}
    assert arms["small_whole"].width < arms["medium_whole"].width < arms["large_whole"].width
    assert arms["gpt2_whole"].width == arms["large_whole"].width
    assert {arm for arm, config in arms.items() if config.equal} == {"large_whole", "gpt2_whole"}
    for size in ("small", "medium"):
        whole = arms[f"{size}_whole"]
        assert arms[f"{size}_half"] == dataclasses.replace(whole, compute=whole.compute / 2)
    assert len({config.compute for arm, config in arms.items() if arm.endswith("whole")}) == 1


@pytest.mark.parametrize("scale", SCALES, ids=lambda name: f"{name} scale")
def test_the_blocks_have_as_many_parameters_and_as_much_compute(scale: Any) -> None:
    """To half a step of rounding each: of the feed-forward layers' width, and of the number of steps."""
    ours, theirs = (EXPERIMENT.scales[scale].arms[arm] for arm in PAIR)
    with torch.device("meta"):
        parameters = [sum(p.numel() for p in build(config).parameters()) for config in (ours, theirs)]
    assert abs(parameters[0] - parameters[1]) <= 1.5 * ours.layers * ours.width + 1
    if scale != "smoke":
        assert parameters[0] == pytest.approx(parameters[1], rel=0.003)
    spent = [config.steps * config.step_tokens * config.flops_per_token for config in (ours, theirs)]
    for config, flops in zip((ours, theirs), spent, strict=True):
        assert abs(flops - config.compute * 1e12) <= config.step_tokens * config.flops_per_token / 2 + 1
    if scale != "smoke":
        assert spent[0] == pytest.approx(spent[1], rel=0.003)


@pytest.mark.parametrize("block", ["llama", "gpt2"])
def test_flops_are_those_that_torch_counts(block: Any) -> None:
    """With attention computed in full, as torch counts it: the half that a causal model skips is then counted too."""
    config = Llama1Config(block, 24, 1.0, layers=2, length=32)
    model = build(config)
    batch = torch.randint(256, (3, config.length + 1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch[:, :-1]).sum().backward()
    skipped = 6 * config.layers * config.length * config.width
    counted = counter.get_total_flops() / (3 * config.length)
    assert counted == pytest.approx(config.flops_per_token + skipped, rel=1e-6)


def test_each_arm_is_built_as_it_says() -> None:
    arms = EXPERIMENT.scales["laptop"].arms
    ours, theirs = build(arms["large_whole"]), build(arms["gpt2_whole"])
    assert isinstance(ours, Llama) and isinstance(ours.positions, RotaryPositions) and isinstance(ours.norm, RMSNorm)
    assert isinstance(theirs.positions, LearnedPositions) and isinstance(theirs.norm, nn.LayerNorm)
    assert not any("bias" in name for name, _ in ours.named_parameters())
    assert any("query.bias" in name for name, _ in theirs.named_parameters())
    for model in (ours, theirs):
        assert model.head is None
        # Both begin alike: the embeddings, and the linear layers, whose deviation follows from their size.
        assert float(model.embedding.weight.detach().std()) == pytest.approx(
            model.embedding.embedding_dim**-0.5, rel=0.1
        )
        query = model.blocks[0].get_parameter("attention.sublayer.query.weight").detach()
        assert float(query.std()) == pytest.approx((2 / sum(query.shape)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("arm", EXPERIMENT.scales["gpu"].arms)
def test_the_gpu_configuration_is_tried(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but for the layers, the size of its batch and one step, on a CPU in its own precision."""
    generator = torch.Generator().manual_seed(0)

    def tokens(vocabulary: int, split: str) -> list[Tensor]:
        return [torch.randint(vocabulary, (1000,), generator=generator) for _ in range(3)]

    monkeypatch.setattr(trials, "tokens", tokens)
    scale = EXPERIMENT.scales["gpu"]
    config: Llama1Config = dataclasses.replace(
        scale.arms[arm], layers=2, step_tokens=256, compute=1e-9, evaluated_tokens=768
    )
    assert config.steps == 1 and config.length == 256
    (tmp_path / "trial").mkdir()
    context = Context(Task(trials.trial, arm, 0, config, tmp_path / "trial", precision=scale.precision))
    metrics = trials.trial(config, context)
    assert 0.8 < metrics["loss"] / math.log(config.vocabulary) < 1.5
    assert metrics["training_tokens"] == 256


@pytest.mark.parametrize(("scale", "arm"), EVERY_ARM)
def test_every_arm_has_points_for_the_figure(scale: Any, arm: str) -> None:
    config: Llama1Config = EXPERIMENT.scales[scale].arms[arm]
    assert config.width % config.head_width == 0 and config.head_width % 2 == 0
    assert config.step_tokens % config.length == 0 and config.evaluated_tokens % (3 * config.length) == 0
    assert config.steps >= POINTS - 1
    assert scale == "smoke" or config.steps > 200


def test_the_texts_are_long_enough() -> None:
    """Held-out targets are there in each text, and no laptop arm sees a part of its text often."""
    config: Llama1Config = EXPERIMENT.scales["laptop"].arms["small_whole"]
    train, held_out = (trials.tokens(256, split) for split in ("train", "test"))
    assert all(len(text) > config.evaluated_tokens // 3 for text in held_out)
    assert config.steps * config.step_tokens < sum(map(len, train))
    batch = trials.held_out(config, "test")[0]
    model = build(config)
    loss, count = next_token_loss(model, batch)
    assert batch.shape == (64, config.length + 1) and count == 64 * config.length and bool(loss.isfinite())
