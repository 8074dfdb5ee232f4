"""The Transformer's experiment: every scale can run, arms are compared alike, and compute is counted as it is."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from allyouneed.data.buckets import Buckets
from allyouneed.evidence import SCALES, Run, Task, run
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import run_trial
from allyouneed.nn import EncoderDecoder, RecurrentEncoderDecoder
from allyouneed.papers.transformer import encoded_pairs, shared_tokenizer, translation_loss, trial
from allyouneed.papers.transformer.experiment import EXPERIMENT
from allyouneed.papers.transformer.trial import LEARNED_POSITIONS, TranslationConfig, build, flops_per_token, pairs
from allyouneed.training import TrainingConfig, train

HEADLINE = ("transformer", "gru")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    assert [result.arm for result in smoke.trials] == list(EXPERIMENT.scales["smoke"].arms)
    for result in smoke.trials:
        measured = {**result.metrics, **result.costs}
        assert all(math.isfinite(value) for value in measured.values())
        assert {claim.test.metric for claim in EXPERIMENT.claims} <= set(measured)
        assert result.metrics["perplexity"] == math.exp(result.metrics["loss"])
        assert 0 <= result.metrics["accuracy"] <= 1
        # Untrained, a model knows nothing of the 400 tokens.
        assert 200 < result.metrics["perplexity"] < 900


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    again = run(EXPERIMENT, "smoke", folder=tmp_path, in_process=True)
    assert [result.metrics for result in again.trials] == [result.metrics for result in smoke.trials]


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
    assert not any(finding.missing for finding in findings.values())


def test_the_figure_has_both_arms_of_the_headline(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    axes: Any = figure.axes[0]
    drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(drawn) == ["GRU with attention", "Transformer"]
    for arm, line in zip(("gru", "transformer"), drawn.values(), strict=True):
        (result,) = [result for result in smoke.trials if result.arm == arm]
        shares = result.config["points"]
        assert list(line.get_xdata()) == [share * result.config["teraflops"] for share in shares]
        assert list(line.get_ydata()) == [result.metrics["bleu_1"], result.metrics["bleu"]]
    assert "training compute" in svg(figure)


def test_the_headline_has_equal_compute(smoke: Run) -> None:
    """To a step, which a smoke trial has few of."""
    for result in smoke.trials:
        budget, spent = result.config["teraflops"], result.metrics["teraflops"]
        assert spent == pytest.approx(budget, abs=0.51 * spent / result.metrics["steps"])
    for name in SCALES:
        arms = EXPERIMENT.scales[name].arms
        assert arms["transformer"].teraflops == arms["gru"].teraflops
        assert arms["transformer"].points == arms["gru"].points
        assert len({arm.teraflops for key, arm in arms.items() if key not in HEADLINE}) == 1


@pytest.mark.parametrize("scale", SCALES, ids=lambda name: f"{name} scale")
def test_arms_differ_only_in_what_is_compared(scale: Any) -> None:
    arms: dict[str, TranslationConfig] = dict(EXPERIMENT.scales[scale].arms)
    base = arms["base"]
    assert {arm: (config.heads, config.positions, config.smoothing) for arm, config in arms.items()} == {
        "transformer": (base.heads, "sinusoidal", 0.1),
        "gru": (base.heads, "sinusoidal", 0.1),
        "base": (base.heads, "sinusoidal", 0.1),
        "one_head": (1, "sinusoidal", 0.1),
        "learned_positions": (base.heads, "learned", 0.1),
        "no_positions": (base.heads, "none", 0.1),
        "unsmoothed": (base.heads, "sinusoidal", 0.0),
    }
    assert base.heads > 1
    # Size, batch and learning rate are each arm's own best, found by the same search; the headline is longer.
    own: dict[str, Any] = {"heads": 1, "positions": "none", "smoothing": 0.0, "points": (1.0,)}
    short = [dataclasses.replace(config, **own) for arm, config in arms.items() if arm not in HEADLINE]
    assert len(set(short)) == 1
    own |= {"learning_rate": 1.0, "warmup": 0.5} | {
        "model": "gru",
        "width": 1,
        "layers": 1,
        "step_tokens": 1,
        "dropout": 0.0,
    }
    assert len({dataclasses.replace(arms[arm], **own) for arm in HEADLINE}) == 1


def test_short_arms_begin_with_the_same_weights() -> None:
    weights = {}
    for arm, config in EXPERIMENT.scales["smoke"].arms.items():
        torch.manual_seed(3)
        weights[arm] = build(config).state_dict()
    tables = {"encoder.positions.table.weight", "decoder.positions.table.weight"}
    assert weights["learned_positions"].keys() - weights["base"].keys() == tables
    for arm in ("transformer", "one_head", "no_positions", "unsmoothed"):
        assert weights[arm].keys() == weights["base"].keys()
        assert all(torch.equal(weights[arm][name], value) for name, value in weights["base"].items())


def test_each_arm_is_its_own_model() -> None:
    arms = EXPERIMENT.scales["laptop"].arms
    models: dict[str, Any] = {arm: build(config) for arm, config in arms.items()}
    assert isinstance(models["gru"], RecurrentEncoderDecoder)
    assert models["gru"].source_embedding.weight is models["gru"].output_weight
    transformers = {arm: model for arm, model in models.items() if isinstance(model, EncoderDecoder)}
    assert transformers.keys() == arms.keys() - {"gru"}
    for arm, model in transformers.items():
        assert len(model.encoder.blocks) == len(model.decoder.blocks) == arms[arm].layers
        assert model.decoder.blocks[0].cross_attention.sublayer.heads == arms[arm].heads
        assert model.encoder.embedding.weight is model.output_weight
    positions = {arm: type(model.encoder.positions).__name__ for arm, model in transformers.items()}
    assert positions["learned_positions"] == "LearnedPositions"
    assert positions["no_positions"] == "PositionScheme"
    assert {positions[arm] for arm in ("transformer", "base", "one_head", "unsmoothed")} == {"SinusoidalPositions"}


@pytest.mark.parametrize("model", HEADLINE)
def test_compute_is_what_the_weights_say(model: Any) -> None:
    """A product with a matrix costs two operations a weight and a vector, and twice as many again on the way back."""
    config = TranslationConfig(model=model, width=64, layers=2, heads=2, vocabulary=500)
    built = build(config)
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randint(1, 500, (40, 16), generator=generator).tolist() for _ in range(2)]
    named = {name: weight.numel() for name, weight in built.named_parameters() if weight.dim() == 2}
    # A sentence has 16 source tokens, and 15 target tokens that are read.
    expected = 15 * 500 * 64
    for name, count in named.items():
        if "embedding" in name:
            continue
        if name.startswith("bridge"):
            expected += count
        elif (
            name.startswith("encoder.")
            or name == "attention.key.weight"
            or ".cross_attention.sublayer.key" in name
            or ".cross_attention.sublayer.value" in name
        ):
            expected += 16 * count
        elif name == "attention.score.weight":
            expected += 16 * 15 * count
        else:
            expected += 15 * count
    if model == "transformer":
        # Scores and averages: two products of the width for each pair of tokens, in two layers.
        expected += 2 * 2 * 64 * (16 * 16 + 15 * 15 + 15 * 16)
    else:
        expected += 16 * 15 * 128
    counted = flops_per_token(built, sides, padding=0) * 32
    assert counted == pytest.approx(6 * expected, rel=0.03)


def test_no_verse_is_longer_than_the_learned_positions() -> None:
    """Not even in bytes, of which a token has one or more, with the 50 tokens that a translation may be longer."""
    for name in ("laptop", "gpu"):
        config = EXPERIMENT.scales[name].arms["learned_positions"]
        texts = [text for split in ("train", "test") for pair in pairs(split, config.words, None) for text in pair]
        assert max(len(text.encode()) for text in texts) + 52 <= LEARNED_POSITIONS


def test_held_out_verses_are_a_few_hundred_and_not_trained_on() -> None:
    config = EXPERIMENT.scales["laptop"].arms["transformer"]
    held_out, seen = pairs("test", config.words, config.evaluated), pairs("train", config.words, None)
    assert 300 <= len(held_out) <= 1000
    assert len(seen) > 12_000
    assert set(held_out).isdisjoint(seen)
    assert all(max(len(text.split()) for text in pair) <= config.words for pair in held_out)


def test_a_trial_that_is_interrupted_ends_as_it_would_have(
    smoke: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the snapshots that were taken before the interruption."""
    config = EXPERIMENT.scales["smoke"].arms["transformer"]
    task = Task(EXPERIMENT.trial, "transformer", 0, config, tmp_path / "trial", checkpoint_seconds=0.0)
    taken: list[int] = []

    class Stopping(trial.Snapshots):
        def take(self, model: Any, step: int) -> None:
            super().take(model, step)
            taken.append(step)
            if step == 9 and len(taken) == 9:
                raise RuntimeError("interrupted")

    monkeypatch.setattr(trial, "Snapshots", Stopping)
    assert run_trial(task).error == "RuntimeError: interrupted"
    record = run_trial(task)
    assert taken[9] == 9, "the second attempt went on where the first one was saved"
    assert record.result is not None
    (whole,) = [result for result in smoke.trials if result.arm == "transformer"]
    assert record.result.metrics == whole.metrics


def test_the_headline_leaves_something_to_look_at(smoke: Run) -> None:
    for arm in HEADLINE:
        (folder,) = (smoke.folder / arm).glob("seed0-*/exhibits")
        table = (folder / "translations.md").read_text(encoding="utf-8").splitlines()
        verses = pairs("test", 10, 4)
        assert len(table) == 2 + len(verses)
        for row, (english, spanish) in zip(table[2:], verses, strict=True):
            assert row.startswith(f"| {english} | {spanish} |")
        assert (folder / "attention.svg").is_file() == (arm == "transformer")
    assert not list(smoke.folder.glob("*/*/snapshots"))


@pytest.mark.parametrize("arm", EXPERIMENT.scales["gpu"].arms)
def test_the_gpu_configuration_is_built_and_stepped(arm: str) -> None:
    """As it is but for its batch and its vocabulary's training, on a CPU in its own precision."""
    scale = EXPERIMENT.scales["gpu"]
    config: TranslationConfig = scale.arms[arm]
    words = shared_tokenizer(pairs("train", 10, 50), 300)
    padding = words.special_tokens["<padding>"]
    batches = Buckets(encoded_pairs(words, pairs("train", 10, 50)), 60, padding, seed=0)
    model = build(config)
    before = model.output_weight.detach().clone()
    fabric = Fabric(accelerator="cpu", devices=1, precision=scale.precision)  # pyright: ignore[reportArgumentType]
    loss = partial(translation_loss, padding=padding, smoothing=config.smoothing)
    result = train(model, batches, loss, TrainingConfig(1, config.learning_rate), fabric=fabric)
    assert 0.9 < float(result.losses[0]) / math.log(config.vocabulary) < 1.5
    assert not torch.equal(model.output_weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
