"""The pre-norm experiment: what is measured, how trainings are counted and resumed, and that every scale can run."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.evidence import SCALES, Context, Run, Task, run
from allyouneed.evidence.figures import svg
from allyouneed.nn import EncoderDecoder, PostNorm, PreNorm
from allyouneed.papers.pre_layer_norm import trials
from allyouneed.papers.pre_layer_norm.experiment import APPENDIX_OCTAVES, EXPERIMENT, WARMUP
from allyouneed.papers.pre_layer_norm.figure import DEPTHS, NORMS
from allyouneed.papers.pre_layer_norm.trials import BEGIN, PADDING, PreLayerNormConfig
from allyouneed.training import DivergedError, next_token_loss

RATES = (1e-3, 2e-3, 4e-3)
SMALL = PreLayerNormConfig(
    "pre",
    layers=1,
    width=8,
    hidden=16,
    length=8,
    step_tokens=32,
    models=2,
    batches=2,
    steps=3,
    learning_rates=RATES,
    evaluated_tokens=512,
)
FREQUENCY_LOSS = 2.0


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short made-up texts in the place of the real ones, which take a while to read."""
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(97, 123, (count,), generator=generator).tolist()

    pairs = [words(4 + place % 5) for place in range(40)], [[BEGIN, *words(5 + place % 3)] for place in range(40)]
    monkeypatch.setattr(trials, "sentences", lambda: pairs)
    texts = {split: torch.tensor(words(3000), dtype=torch.uint8) for split in ("train", "validation")}
    monkeypatch.setattr(trials, "text", texts.__getitem__)
    monkeypatch.setattr(trials, "sentence_batches", trials.sentence_batches.__wrapped__)
    monkeypatch.setattr(trials, "held_out", trials.held_out.__wrapped__)
    monkeypatch.setattr(trials, "frequency_loss", lambda length, limit: FREQUENCY_LOSS)


def context(folder: Path, seed: int = 0) -> Context:
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    return Context(Task(trials.trial, "arm", seed, SMALL, folder))


class TestScales:
    def test_every_claim_finds_its_metric(self, smoke: Run) -> None:
        assert not smoke.failures, [failure.error for failure in smoke.failures]
        findings = smoke.findings()
        assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
        assert not any(finding.missing for finding in findings.values())
        # One seed is too few for a verdict.
        assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
        for result in smoke.trials:
            assert all(math.isfinite(value) for value in result.metrics.values())

    def test_the_figure_has_every_arm(self, smoke: Run) -> None:
        figure = EXPERIMENT.figure(smoke.trials)
        over_layers, over_depths, over_rates = figure.axes
        labels = [
            [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
            for axes in figure.axes
        ]
        assert [len(found) for found in labels] == [4, 2, 4]
        assert list(over_layers.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]
        assert list(over_depths.lines[0].get_xdata()) == list(DEPTHS)
        rates = EXPERIMENT.scales["smoke"].arms["pre_with_warmup"].learning_rates
        assert list(over_rates.lines[0].get_xdata()) == list(rates)
        assert "learning rate" in svg(figure)

    @pytest.mark.parametrize("without", [("post_",), ("pre_without", "pre_with_", "post_without"), ("pre_4",)])
    def test_the_figure_of_an_unfinished_run_is_drawn(self, smoke: Run, without: tuple[str, ...]) -> None:
        some = [result for result in smoke.trials if not result.arm.startswith(without)]
        assert "expected gradient" in svg(EXPERIMENT.figure(some))

    @pytest.mark.parametrize("scale", SCALES, ids=lambda name: f"{name} scale")
    def test_arms_differ_only_in_what_is_compared(self, scale: Any) -> None:
        arms: dict[str, PreLayerNormConfig] = dict(EXPERIMENT.scales[scale].arms)
        for arm, config in arms.items():
            assert config.norm == arm.split("_")[0]
            twin = arms[arm.replace(*(NORMS if config.norm == NORMS[0] else NORMS[::-1]))]
            assert dataclasses.replace(twin, norm=config.norm) == config
        measured = [config for config in arms.values() if config.task != "training"]
        trained = [config for config in arms.values() if config.task == "training"]
        alike: dict[str, Any] = {"norm": "pre", "task": "training", "warmup": 0.0}
        assert len({dataclasses.replace(config, **alike) for config in trained}) == 1
        assert {config.warmup for config in trained} == {0.0, WARMUP}
        assert len({dataclasses.replace(config, **alike, layers=1) for config in measured}) == 1
        assert {arms[f"pre_{depth}"].layers for depth in DEPTHS} == set(DEPTHS)

    @pytest.mark.parametrize("arm", ["post_6", "pre_language", "post_with_warmup"])
    @pytest.mark.usefixtures("few_words")
    def test_the_gpu_configuration_is_tried(self, arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As it is, but for the size of its batch and one step, on a CPU in its own precision."""
        scale = EXPERIMENT.scales["gpu"]
        config: PreLayerNormConfig = scale.arms[arm]
        less = {"models": 1, "batches": 1, "steps": 1, "learning_rates": config.learning_rates[:1]}
        config = dataclasses.replace(config, step_tokens=config.length, evaluated_tokens=config.length, **less)
        (tmp_path / "trial").mkdir()
        task = Task(trials.trial, arm, 0, config, tmp_path / "trial", precision=scale.precision)
        metrics = trials.trial(config, Context(task))
        assert all(0 < value < 20 for name, value in metrics.items() if name.startswith(("layer_", "loss_at_")))


class TestModels:
    @pytest.mark.parametrize(("norm", "wrapper"), [("pre", PreNorm), ("post", PostNorm)])
    def test_norms_stand_where_the_arm_says(self, norm: Any, wrapper: type[nn.Module]) -> None:
        config = dataclasses.replace(SMALL, norm=norm, layers=2)
        translation = trials.translation_model(config)
        for model, sublayers in (
            (trials.language_model(config), 2),
            (translation.decoder, 3),
            (translation.encoder, 2),
        ):
            assert isinstance(model.norm, nn.LayerNorm if norm == "pre" else nn.Identity)
            for block in model.blocks:
                assert [type(part) for part in block.children()] == [wrapper] * sublayers
        assert translation.encoder.embedding is translation.decoder.embedding

    def test_both_placements_begin_with_the_same_weights(self) -> None:
        for build in (trials.language_model, trials.translation_model):
            states = []
            for norm in ("pre", "post"):
                torch.manual_seed(3)
                states.append(build(dataclasses.replace(SMALL, norm=norm)).state_dict())
            pre, post = states
            assert all(torch.equal(tensor, pre[name]) for name, tensor in post.items())
            assert {name.rsplit(".", 1)[0].split(".")[-1] for name in pre.keys() - post.keys()} == {"norm"}


class TestTranslationLoss:
    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        source = torch.randint(2, 256, (3, 7), generator=generator)
        target = torch.randint(2, 256, (3, 6), generator=generator)
        target[:, 0] = BEGIN
        source[1, 4:], target[2, 3:] = PADDING, PADDING
        return source, target

    def model(self) -> EncoderDecoder:
        torch.manual_seed(0)
        return trials.translation_model(SMALL).double()

    def test_is_the_cross_entropy_of_each_row_by_itself(self) -> None:
        model, (source, target) = self.model(), self.batch()
        total, count = trials.translation_loss(model, (source, target))
        expected, targets = 0.0, 0
        for row in range(3):
            mine, their = source[row][source[row] != PADDING][None], target[row][target[row] != PADDING][None]
            logits = model(mine, their[:, :-1])[0].detach()
            expected += float(F.cross_entropy(logits, their[0, 1:], reduction="sum"))
            targets += their.shape[1] - 1
        assert float(total.detach()) == pytest.approx(expected, rel=1e-10)
        assert int(count) == targets

    def test_more_padding_changes_nothing(self) -> None:
        model, batch = self.model(), self.batch()
        padded = tuple(F.pad(side, (0, 4), value=PADDING) for side in batch)
        first, second = (trials.translation_loss(model, some) for some in (batch, padded))
        assert float(first.total.detach()) == pytest.approx(float(second.total.detach()), rel=1e-12)
        assert int(first.targets) == int(second.targets)

    def test_no_verse_has_the_bytes_that_pad_and_begin(self) -> None:
        sources, targets = trials.sentences()
        assert len(sources) == len(targets) > 20_000
        assert min(map(min, sources)) > BEGIN
        assert all(target[0] == BEGIN and min(target[1:]) > BEGIN for target in targets)


class TestGradients:
    @pytest.mark.parametrize("task", ["translation gradients", "language gradients"])
    @pytest.mark.usefixtures("few_words")
    def test_are_means_over_models_of_the_right_matrices(self, task: Any, tmp_path: Path) -> None:
        config = dataclasses.replace(SMALL, norm="post", task=task, layers=2)
        metrics = trials.trial(config, context(tmp_path, seed=5))
        torch.manual_seed(5)
        expected = torch.zeros(2)
        batches: Any
        if task == "language gradients":
            batches, build, loss = trials.windows(config, 5), trials.language_model, next_token_loss
        else:
            batches = trials.Buckets(trials.sentences(), config.step_tokens, PADDING, 5)
            build, loss = trials.translation_model, trials.translation_loss
        for first in (0, 2):
            model: Any = build(config)
            parts = [loss(model, batches(first + place)) for place in range(2)]
            (sum(part.total for part in parts) / sum(int(part.targets) for part in parts)).backward()
            decoder = model.decoder if isinstance(model, EncoderDecoder) else model
            weights = [block.feed_forward.sublayer.output.weight for block in decoder.blocks]
            expected += torch.stack([weight.grad.norm() for weight in weights]) / 2
        assert metrics["layer_1"] == pytest.approx(float(expected[0]), rel=1e-5)
        assert metrics["layer_2"] == metrics["last_layer"] == pytest.approx(float(expected[1]), rel=1e-5)
        assert metrics["rise"] == pytest.approx(metrics["layer_2"] / metrics["layer_1"], rel=1e-5)
        assert 2 ** metrics["octaves"] == pytest.approx(metrics["rise"], rel=1e-5)

    def test_placements_are_told_apart(self, tmp_path: Path) -> None:
        """At 16 layers one draw of weights shows both laws; an arm with the other arm's norms would fail."""
        laptop = EXPERIMENT.scales["laptop"].arms
        found = {
            arm: trials.trial(dataclasses.replace(laptop[arm], models=1, batches=2), context(tmp_path / arm, seed=100))
            for arm in ("post_4", "post_16", "pre_4", "pre_16")
        }
        assert 0.7 < found["post_16"]["last_layer"] / found["post_4"]["last_layer"] < 1.4
        assert found["pre_16"]["last_layer"] / found["pre_4"]["last_layer"] < 0.7
        assert found["post_16"]["rise"] > 20 > 2 > found["pre_16"]["rise"]
        assert math.isclose(2**APPENDIX_OCTAVES, 2.756, abs_tol=1e-3)


@pytest.mark.usefixtures("few_words")
class TestTraining:
    def test_starts_from_the_same_weights_at_every_rate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[Any, ...]] = []

        def train(model: nn.Module, batches: Any, loss: Any, settings: Any, **options: Any) -> None:
            weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
            seen.append((settings, weights, batches(0)))
            with torch.no_grad():
                model.embedding.weight.mul_(2.0)

        monkeypatch.setattr(trials, "train", train)
        for warmup in (0.0, 1 / 3):
            trials.trial(dataclasses.replace(SMALL, warmup=warmup), context(tmp_path / f"{warmup}"))
        assert [settings.learning_rate for settings, *_ in seen] == [*RATES, *RATES]
        assert [settings.schedule.warmup for settings, *_ in seen] == [0, 0, 0, 1, 1, 1]
        assert all(torch.equal(weights, seen[0][1]) and torch.equal(rows, seen[0][2]) for _, weights, rows in seen)
        for settings, *_ in seen:
            # Adam, as in the paper.
            assert (settings.weight_decay, settings.betas, settings.clip) == (0.0, (0.9, 0.98), None)

    def test_best_and_working_rates(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = dict(zip(RATES, (1.9 * trials.WORKS, 1.2, 2.0), strict=True))
        monkeypatch.setattr(trials, "train_at", lambda rate, *arguments: ends[rate])
        metrics = trials.trial(SMALL, context(tmp_path))
        assert (metrics["best_loss"], metrics["best_rate"], metrics["working_rates"]) == (1.2, 2e-3, 2)
        assert [metrics[f"loss_at_{rate:g}"] for rate in RATES] == list(ends.values())

    @pytest.mark.parametrize("end", [DivergedError("the loss is nan"), math.nan, math.inf, 50.0])
    def test_failures_count_as_a_guess(self, end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def train(*arguments: Any, **options: Any) -> None:
            if isinstance(end, Exception):
                raise end

        monkeypatch.setattr(trials, "train", train)
        monkeypatch.setattr(trials, "evaluate", lambda *arguments, **options: end)
        metrics = trials.trial(SMALL, context(tmp_path))
        assert metrics["best_loss"] == math.log(256)
        assert metrics["working_rates"] == 0

    def test_goes_on_where_it_was_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the second training of three: the first is not repeated, the second continues from its checkpoint."""
        whole = trials.trial(SMALL, context(tmp_path / "whole"))
        killed = context(tmp_path / "killed")
        killed.checkpoint.every_seconds = 0.0
        steps = 0

        def log(*arguments: Any, **values: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == SMALL.steps + 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(killed, "log", log)
        with pytest.raises(KeyboardInterrupt):
            trials.trial(SMALL, killed)
        assert list(json.loads((tmp_path / "killed" / "losses.json").read_text())) == [f"{RATES[0]:g}"]
        again = context(tmp_path / "killed", seed=0)
        shown: list[int] = []
        monkeypatch.setattr(again, "log", lambda step, steps, **values: shown.append(step))
        assert trials.trial(SMALL, again) == whole
        # Two steps of the second training were kept.
        assert shown == [6, 7, 8, 9]
        assert not list((tmp_path / "killed").glob("checkpoint*"))

    def test_progress_counts_all_trainings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        here = context(tmp_path)
        shown: list[tuple[int, int]] = []
        monkeypatch.setattr(here, "log", lambda step, steps, **values: shown.append((step, steps)))
        trials.trial(SMALL, here)
        assert shown == [(step, 9) for step in range(1, 10)]


def test_frequencies_alone_are_the_reference() -> None:
    """A novel's bytes cost about 3 nats each by their frequencies, and a model must do clearly better to count."""
    loss = trials.frequency_loss(64, 16_384)
    assert 2.9 < loss < 3.2
    assert trials.frequency_loss(32, 16_384) == pytest.approx(loss, rel=1e-6)
