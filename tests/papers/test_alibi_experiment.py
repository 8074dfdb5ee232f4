"""ALiBi's experiment: every scale can run, and arms are compared alike."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from allyouneed.data import tokens as corpus
from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import SCALES, Run, run
from allyouneed.evidence.figures import svg
from allyouneed.nn import Decoder
from allyouneed.papers.alibi import ALiBi, experiment
from allyouneed.papers.alibi.experiment import EXPERIMENT, MULTIPLES, AlibiConfig, build
from allyouneed.training import TrainingConfig, TrainingResult, next_token_loss, train

EVERY_ARM = [
    pytest.param(scale, arm, id=f"{arm} at {scale} scale") for scale in SCALES for arm in EXPERIMENT.scales[scale].arms
]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


@pytest.fixture
def small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens in the place of byte pairs, which would have to be learned from all of the texts first."""

    def tokens(vocabulary: int, split: str) -> list[Tensor]:
        if vocabulary == 256:
            return real(256, split)
        generator = torch.Generator().manual_seed(vocabulary)
        return [torch.randint(vocabulary, (80_000,), generator=generator) for _ in range(2)]

    real: Any = experiment.corpus_tokens
    for module in (experiment, corpus):
        monkeypatch.setattr(module, "corpus_tokens", tokens)


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    assert [result.arm for result in smoke.trials] == list(EXPERIMENT.scales["smoke"].arms)
    for result in smoke.trials:
        measured = {**result.metrics, **result.costs}
        assert all(math.isfinite(value) for value in measured.values())
        assert {claim.test.metric for claim in EXPERIMENT.claims} <= set(measured)
        perplexities = [result.metrics[f"perplexity_x{multiple}"] for multiple in MULTIPLES]
        assert all(1 < perplexity < 1000 for perplexity in perplexities)
        assert result.metrics["rise_x16"] == perplexities[-1] / perplexities[0]
        assert result.metrics["largest_rise"] == max(perplexities[1:]) / perplexities[0]
        assert 0 < result.metrics["fused_megabytes"] < result.metrics["plain_megabytes"]
        assert result.costs["step_seconds"] > 0


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    """Memory too, which is counted and not sampled."""
    again = run(EXPERIMENT, "smoke", folder=tmp_path, in_process=True)
    assert [result.metrics for result in again.trials] == [result.metrics for result in smoke.trials]


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
    assert not any(finding.missing for finding in findings.values())


def test_the_figure_has_every_arm_at_every_length(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    axes: Any = figure.axes[0]
    short = EXPERIMENT.scales["smoke"].arms["alibi"].length
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}
    assert list(drawn) == ["sinusoidal", "rotary", "ALiBi", f"sinusoidal, trained at {2 * short}"]
    assert all(lengths == [multiple * short for multiple in MULTIPLES] for lengths in drawn.values())
    assert "inference input tokens" in svg(figure)


@pytest.mark.parametrize(("scale", "arm"), EVERY_ARM)
@pytest.mark.usefixtures("small_vocabulary")
def test_the_same_targets_are_scored_at_every_length(
    scale: Any, arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: AlibiConfig = EXPERIMENT.scales[scale].arms[arm]
    scored: dict[int, Tensor] = {}

    def evaluate(model: Decoder, batches: Iterable[Tensor], loss: object, *, fabric: Fabric) -> float:
        assert loss is next_token_loss
        windows = list(batches)
        (length,) = {batch.shape[1] - 1 for batch in windows}
        scored[length] = torch.cat([batch[:, 1:].flatten() for batch in windows])
        return 1.0

    nothing = TrainingResult(torch.ones(1), torch.ones(1))
    monkeypatch.setattr(experiment, "train", lambda *arguments, **options: nothing)
    monkeypatch.setattr(experiment, "evaluate", evaluate)
    monkeypatch.setattr(experiment, "step_memory", lambda *arguments: {})
    monkeypatch.setattr(experiment, "build", lambda config: None)
    alone = dataclasses.replace(EXPERIMENT.scales[scale], arms={arm: config}, seeds=1, device="cpu")
    tried = dataclasses.replace(EXPERIMENT, scales=dict.fromkeys(SCALES, alone), claims=(), trial=experiment.trial)
    assert not run(tried, scale, folder=tmp_path, in_process=True).failures
    assert list(scored) == [multiple * config.length for multiple in MULTIPLES]
    first = scored[config.length]
    assert len(first) == config.evaluated_tokens
    # And they are the beginnings of the held-out texts, each token but the first once.
    novel, addresses = experiment.corpus_tokens(config.vocabulary, "validation")
    half = config.evaluated_tokens // 2
    assert torch.equal(first, torch.cat([novel[1 : half + 1], addresses[1 : half + 1]]).long())
    assert all(torch.equal(targets, first) for targets in scored.values())


@pytest.mark.parametrize("scale", SCALES, ids=lambda name: f"{name} scale")
def test_arms_differ_only_in_what_is_compared(scale: Any) -> None:
    arms: dict[str, AlibiConfig] = dict(EXPERIMENT.scales[scale].arms)
    assert {arm: (config.positions, config.trained_at) for arm, config in arms.items()} == {
        "alibi": ("alibi", 1),
        "sinusoidal": ("sinusoidal", 1),
        "rotary": ("rotary", 1),
        "sinusoidal_double": ("sinusoidal", 2),
    }
    # The learning rate is each arm's own best, found by the same search.
    own = {"positions": "alibi", "trained_at": 1, "learning_rate": 1.0}
    assert len({dataclasses.replace(config, **own) for config in arms.values()}) == 1
    # The same tokens a step: the double length has half the rows.
    for config in arms.values():
        assert config.step_tokens % (config.length * config.trained_at) == 0
        assert config.evaluated_tokens % (2 * MULTIPLES[-1] * config.length) == 0


def test_arms_begin_with_the_same_weights() -> None:
    weights = []
    for config in EXPERIMENT.scales["smoke"].arms.values():
        torch.manual_seed(3)
        weights.append(build(config).state_dict())
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(other[name], weights[0][name]) for name in other)


def test_each_arm_has_its_own_positions() -> None:
    schemes = {arm: type(build(config).positions) for arm, config in EXPERIMENT.scales["smoke"].arms.items()}
    assert schemes["alibi"] is ALiBi
    assert schemes["sinusoidal"] is schemes["sinusoidal_double"]
    assert len(set(schemes.values())) == 3


@pytest.mark.parametrize("arm", EXPERIMENT.scales["gpu"].arms)
@pytest.mark.usefixtures("small_vocabulary")
def test_the_gpu_configuration_is_built_and_stepped(arm: str) -> None:
    """As it is but for the rows of its batch, on a CPU in its own precision."""
    scale = EXPERIMENT.scales["gpu"]
    config: AlibiConfig = scale.arms[arm]
    model = build(config)
    assert len(model.blocks) == config.layers
    window = config.length * config.trained_at
    batches = RandomWindows(torch.cat(experiment.corpus_tokens(config.vocabulary, "train")), window, 1, seed=0)
    before = model.output_weight.detach().clone()
    fabric = Fabric(accelerator="cpu", devices=1, precision=scale.precision)  # pyright: ignore[reportArgumentType]
    result = train(model, batches, next_token_loss, TrainingConfig(1, config.learning_rate), fabric=fabric)
    # Untrained, it knows nothing of the tokens; tied and scaled embeddings make it guess the token that it reads.
    assert 0.9 < float(result.losses[0]) / math.log(config.vocabulary) < 2
    assert not torch.equal(model.output_weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
