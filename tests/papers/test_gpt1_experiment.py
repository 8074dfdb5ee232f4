"""GPT's experiment: every scale can run, and arms are compared alike."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allyouneed.data import documents
from allyouneed.data.tasks import task
from allyouneed.evidence import SCALES, Context, Run, Task, TrialResult, run
from allyouneed.evidence.figures import svg
from allyouneed.papers.gpt1 import GPT1, PADDING, Examples, RecurrentLanguageModel, Special, tasks, trials
from allyouneed.papers.gpt1.batches import OfOneLength, in_order_of_length, trimmed
from allyouneed.papers.gpt1.experiment import EXPERIMENT
from allyouneed.papers.gpt1.figure import NAMES, TITLES
from allyouneed.papers.gpt1.tasks import LABELS, TASKS, Corpus, corpus, labelled
from allyouneed.papers.gpt1.trials import ALONE, AMOUNTS, CURVE, Job, TransferConfig, fine_tune, jobs, slope, summary

STANDINS = Path(__file__).parents[1] / "standins"
SMALL: TransferConfig = EXPERIMENT.scales["smoke"].arms["transformer"]


@pytest.fixture(scope="module", autouse=True)
def standins() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        patch.setenv("ALLYOUNEED_OFFLINE", "1")
        corpus.cache_clear()
        yield
        corpus.cache_clear()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


@pytest.fixture
def source() -> Corpus:
    return corpus(SMALL.vocabulary, SMALL.share)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Task(trials.trial, "transformer", 0, SMALL, tmp_path))


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    found = {result.arm: result.metrics for result in smoke.trials}
    assert list(found) == list(EXPERIMENT.scales["smoke"].arms)
    for claim in EXPERIMENT.claims:
        for arm in claim.test.arms:
            assert claim.test.metric in found[arm], (claim.id, arm)
    for arm, metrics in found.items():
        assert all(math.isfinite(value) for value in metrics.values())
        for kind in TASKS:
            each = [metrics[f"{kind}_{name}"] for name in AMOUNTS]
            assert all(0 <= value <= 1 for value in each)
            assert metrics[kind] == pytest.approx(np.mean(each))
        assert ("pretraining_loss" in metrics) == EXPERIMENT.scales["smoke"].arms[arm].pretrained


def test_the_same_trials_give_the_same_metrics(smoke: Run, context: Context) -> None:
    torch.manual_seed(0)
    again = trials.trial(SMALL, context)
    assert again == next(result.metrics for result in smoke.trials if result.arm == "transformer")


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
    assert not any(finding.missing for finding in findings.values())


def test_the_figure_has_every_row_and_every_layer(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    assert len(figure.axes) == 4
    shown: dict[Any, Any] = {}
    for axes, kind in zip(figure.axes, TITLES, strict=False):
        drawn: Any = {line.get_label() for line in axes.lines}
        expected_names = {name for arm, name in NAMES.items() if arm != "alone" or kind in ALONE}
        assert {str(name) for name in drawn if not str(name).startswith("_")} == expected_names
        colours = {line.get_label(): line.get_color() for line in axes.lines if line.get_label() in expected_names}
        assert all(colours[name] == shown.setdefault(name, colours[name]) for name in colours)
    layers = [label.get_text() for label in figure.axes[3].get_xticklabels()]
    assert layers == ["nothing", "embeddings", "1 layer", "2 layers"]
    by_arm = {result.arm: result.metrics for result in smoke.trials}
    curve: Any = figure.axes[3].lines[-1].get_ydata()
    own = by_arm["transformer"]
    expected = [by_arm["none"][f"{CURVE}_most"], own["layers_0"], own["layers_1"], own[f"{CURVE}_most"]]
    assert curve.tolist() == expected
    assert "Layers transferred" in svg(figure)


def made_up(values: dict[str, float], seed: int) -> TrialResult:
    """Give a trial whose accuracies differ a little from seed to seed."""
    metrics = {job.metric: values.get(job.metric, 0.5) + 0.001 * (seed + len(job.metric) % 3) for job in jobs(SMALL)}
    return TrialResult("transformer", seed, dataclasses.asdict(SMALL), metrics | summary(SMALL, metrics), {}, 0.0)


def test_claims_tell_better_from_worse() -> None:
    """On made-up accuracies: what rises with layers and with examples is reproduced, what falls is contradicted."""
    by_id = {claim.id: claim for claim in EXPERIMENT.claims}
    for sign, verdict in ((1, "reproduced"), (-1, "contradicted")):
        values = {f"layers_{count}": 0.5 + 0.1 * sign * count for count in range(3)}
        values |= {f"{CURVE}_most": 0.5 + 0.2 * sign, f"alone_{CURVE}_most": 0.5, f"alone_{CURVE}_few": 0.5}
        results = [made_up(values, seed) for seed in range(3)]
        assert by_id["each_layer_adds"].judge(results, range(3)).verdict == verdict
        assert all(
            (one.metrics[name] > 0) == (sign > 0)
            for one in results
            for name in ("auxiliary_gain_most", "auxiliary_slope")
        )
        others = [
            TrialResult(arm, seed, {}, dict.fromkeys(results[0].metrics, 0.45 + 0.1 * (sign < 0)), {}, 0.0)
            for arm in ("none", "lstm")
            for seed in range(3)
        ]
        kept = [dataclasses.replace(one, metrics=dict.fromkeys(one.metrics, 0.5)) for one in results]
        for claim in EXPERIMENT.claims:
            if isinstance(getattr(claim.test, "than", None), str):
                assert claim.judge([*kept, *others], range(3)).verdict == ("reproduced" if sign > 0 else "contradicted")


def test_a_slope_is_the_least_squares_one() -> None:
    assert slope([0, 1, 2], [1.0, 3.0, 5.0]) == pytest.approx(2)
    assert slope([0, 1, 2], [0.0, 0.0, 3.0]) == pytest.approx(1.5)


@pytest.mark.parametrize("scale", SCALES)
class TestScales:
    def test_arms_differ_in_what_is_compared_alone(self, scale: Any) -> None:
        arms = EXPERIMENT.scales[scale].arms
        differing = {"model", "pretrained", "auxiliary", "ablations", "learning_rate", "fine_rate"}
        shared = [
            {key: value for key, value in dataclasses.asdict(config).items() if key not in differing}
            for config in arms.values()
        ]
        assert all(one == shared[0] for one in shared)
        assert arms["transformer"].split == "test"
        assert [(arm.model, arm.pretrained) for arm in arms.values()] == [
            ("transformer", True),
            ("lstm", True),
            ("transformer", False),
        ]

    def test_the_rival_has_as_many_parameters(self, scale: Any) -> None:
        with torch.device("meta"):
            models = {
                arm: config.build(config.vocabulary, 0.0) for arm, config in EXPERIMENT.scales[scale].arms.items()
            }
        assert isinstance(models["transformer"], GPT1) and isinstance(models["lstm"], RecurrentLanguageModel)
        counts = {arm: sum(parameter.numel() for parameter in model.parameters()) for arm, model in models.items()}
        assert counts["lstm"] == pytest.approx(counts["transformer"], rel=0.005)
        assert counts["none"] == counts["transformer"]


@pytest.mark.parametrize("arm", EXPERIMENT.scales["gpu"].arms)
def test_the_gpu_scale_takes_a_step(arm: str, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    config: TransferConfig = EXPERIMENT.scales["gpu"].arms[arm]
    # As wide and deep, on little: the stand-in has no 8,192 pairs.
    config = dataclasses.replace(
        config,
        vocabulary=SMALL.vocabulary,
        length=64,
        batch=2,
        steps=1,
        sizes=(2, 3, 4),
        epochs=(1, 1, 1),
        fine_batch=4,
        scored=4,
        ablations=False,
    )
    small = corpus(SMALL.vocabulary, SMALL.share)
    monkeypatch.setattr(trials, "corpus", lambda vocabulary, share: small)
    monkeypatch.setattr(trials, "TASKS", {CURVE: TASKS[CURVE]})
    metrics = trials.trial(config, context)
    assert all(math.isfinite(value) for value in metrics.values())


class TestTasks:
    def test_unlabelled_text_is_the_beginnings_of_works(self, source: Corpus) -> None:
        whole = [source.tokenizer.encode(text[: int(SMALL.share * len(text))]) for text in documents("train")]
        begun = [token for tokens in whole for token in tokens]
        assert source.tokens[: len(begun)].tolist() == begun
        # The Brown corpus is behind them.
        assert len(source.tokens) > len(begun)
        assert source.special == Special(300, 301, 302)

    @pytest.mark.parametrize("kind", TASKS)
    def test_examples_have_their_rows_and_labels(self, kind: str, source: Corpus) -> None:
        found = labelled(kind, "train", source, 0, 64, 100)
        assert found.tokens.shape[:2] == (100, 2 if kind in ("similarity", "choice") else 1)
        assert set(found.labels.tolist()) == set(range(len(LABELS.get(kind, "ab"))))
        for rows in found.tokens.tolist():
            for row in rows:
                real = [token for token in row if token != PADDING]
                assert real[0] == source.special.start and real[-1] == source.special.extract
                assert real.count(source.special.delimiter) == (kind != "sentiment")

    def test_fewer_examples_are_the_first_of_more(self, source: Corpus) -> None:
        for kind in TASKS:
            few, more, other = (labelled(kind, "train", source, seed, 64, n) for seed, n in ((3, 10), (3, 50), (4, 10)))
            assert few.labels.tolist() == more.labels[:10].tolist()
            length = few.tokens.shape[-1]
            assert torch.equal(few.tokens, more.tokens[:10, :, :length])
            assert other.tokens.shape != few.tokens.shape or not torch.equal(other.tokens, few.tokens)

    def test_no_example_of_training_is_scored(self) -> None:
        # Of more text, so that no two numbers are unknown words.
        source = corpus(400, 0.02)
        for kind in ("sentiment", "entailment", "choice"):
            seen, scored = (
                {tuple(token for row in rows for token in row if token) for rows in part.tokens.tolist()}
                for part in (labelled(kind, "train", source, 0, 64, 300), labelled(kind, "test", source, 0, 64, 300))
            )
            assert scored and seen and not seen & scored

    def test_options_are_the_right_answer_and_a_wrong_one(self, source: Corpus) -> None:
        asked = task("qasc_wrong", "test").examples
        rights = {example.text.partition("\nCorrect Answer:")[2].strip().rstrip(".") for example in asked}
        found = labelled("choice", "test", source, 0, 64, 10_000)
        # Each question with each of its wrong answers.
        assert len(found.labels) == sum(len(example.answers) for example in asked)
        assert 0.4 < found.labels.float().mean() < 0.6
        for rows, label in zip(found.tokens[:20].tolist(), found.labels[:20].tolist(), strict=True):
            answers = []
            for row in rows:
                begin, end = row.index(source.special.delimiter), row.index(source.special.extract)
                answers.append(source.tokenizer.decode(row[begin + 1 : end]).rstrip(" ."))
            fact = source.tokenizer.decode(rows[0][1 : rows[0].index(source.special.delimiter)])
            assert answers[label] in {right.lower() for right in rights}
            # In the stand-in the fact begins with what is right.
            assert fact.startswith(f"fact : {answers[label]}") and not fact.startswith(f"fact : {answers[1 - label]}")

    def test_scored_pairs_are_asked_about_both_ways(self, source: Corpus) -> None:
        found = labelled("similarity", "test", source, 0, 64, 10_000)
        assert found.labels.tolist() == [1, 0] * (len(found.labels) // 2)
        pairs = {example.text for example in task("qasc_overlap", "test").examples}
        together = {tuple(source.tokenizer.encode(text.partition("Sentence2:")[2].strip())) for text in pairs}
        assert len(found.labels) == 2 * len(task("qasc_overlap", "test").examples)
        for rows, _ in zip(found.tokens.tolist(), found.labels, strict=True):
            first, second = (
                tuple(row[row.index(source.special.delimiter) + 1 : row.index(source.special.extract)]) for row in rows
            )
            assert first in together
            # The other order has the same two texts.
            assert tuple(rows[0][1 : 1 + len(second)]) == second

    def test_what_is_too_long_is_left_out(self, source: Corpus) -> None:
        assert labelled("entailment", "train", source, 0, 64, 500).tokens.shape[-1] <= 64
        with pytest.raises(ValueError, match="no example of entailment has rows of 8 tokens"):
            labelled("entailment", "train", source, 0, 8, 500)


class TestBatches:
    @pytest.fixture
    def examples(self) -> Examples:
        generator = torch.Generator().manual_seed(0)
        sizes = torch.randint(1, 30, (100, 2), generator=generator)
        tokens = torch.arange(30).expand(100, 2, 30) % 7
        # Padding's number inside a row is an unknown word.
        last = torch.arange(30) == sizes[..., None] - 1
        return Examples(tokens.where(torch.arange(30) < sizes[..., None], 0).masked_fill(last, 9), torch.arange(100))

    def test_every_example_comes_once_an_epoch(self, examples: Examples) -> None:
        batches = OfOneLength(examples, 7, 5)
        assert batches.batches_per_epoch == 14
        orders = []
        for epoch in range(2):
            seen = [label for step in range(14) for label in batches(14 * epoch + step)[1].tolist()]
            assert len(set(seen)) == 98
            orders.append(seen)
        assert orders[0] != orders[1]
        tokens, labels = batches(3)
        assert torch.equal(tokens, examples.tokens[labels])

    def test_are_a_pure_function_of_the_step(self, examples: Examples) -> None:
        first, again = OfOneLength(examples, 7, 5), OfOneLength(examples, 7, 5)
        for step in (0, 20):
            first(step)
        for one, two in zip(first(3), again(3), strict=True):
            assert torch.equal(one, two)

    def test_have_examples_of_about_one_length(self, examples: Examples) -> None:
        def padding(batches: Any) -> float:
            return sum(trimmed(tokens).shape[-1] for tokens, _ in batches)

        drawn = OfOneLength(examples, 7, 5)
        assert padding(drawn(step) for step in range(14)) < 0.9 * padding(
            (examples.tokens[i : i + 7], None) for i in range(0, 98, 7)
        )
        ordered = list(in_order_of_length(examples, 7))
        assert sorted(label for _, labels in ordered for label in labels.tolist()) == list(range(100))
        widths = [trimmed(tokens).shape[-1] for tokens, _ in ordered]
        assert widths == sorted(widths)

    def test_unknown_words_are_not_cut_off(self) -> None:
        tokens = torch.tensor([[[5, 0, 0, 9, 0, 0], [5, 9, 0, 0, 0, 0]]])
        assert trimmed(tokens).tolist() == [[[5, 0, 0, 9], [5, 9, 0, 0]]]


class TestFineTuning:
    def test_starts_from_the_pre_trained_weights_and_leaves_them(self, context: Context, source: Corpus) -> None:
        torch.manual_seed(0)
        body = SMALL.build(SMALL.vocabulary, 0.0)
        before = {name: value.clone() for name, value in body.named_parameters()}
        job = Job("", "sentiment", 0, 0.5)
        with_body = fine_tune(body, SMALL, source, job, context, lambda **_: None)
        assert all(torch.equal(value, before[name]) for name, value in body.named_parameters())
        assert with_body == fine_tune(body, SMALL, source, job, context, lambda **_: None)

    def test_the_auxiliary_objective_is_trained_on_where_it_is_asked_for(
        self, context: Context, source: Corpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loss that a job trains on: with λ the language model's is in it, without there are the labels' alone."""
        losses: dict[float, float] = {}

        def take(model: Any, batches: Any, loss: Any, *_: Any, **__: Any) -> None:
            model.eval()
            tokens, labels = batches(0)
            total, _ = loss(model, (tokens, labels))
            alone = torch.nn.functional.cross_entropy(model(trimmed(tokens)), labels, reduction="sum")
            losses[job.auxiliary] = float((total - alone).detach()) / len(labels)

        monkeypatch.setattr(trials, "train", take)
        torch.manual_seed(5)
        body = SMALL.build(SMALL.vocabulary, 0.0)
        of_an_arm = [
            next(job for job in jobs(SMALL) if job.metric == name) for name in ("choice_few", "alone_choice_few")
        ]
        for job in (*of_an_arm, Job("", CURVE, 0, 1.0)):
            fine_tune(body, SMALL, source, job, context, lambda **_: None)
        assert sorted(losses) == [0.0, 0.5, 1.0]
        assert losses[0.0] == pytest.approx(0.0, abs=1e-5)
        # A new model's loss is about that of a uniform guess.
        assert losses[1.0] == pytest.approx(math.log(SMALL.vocabulary + 3), rel=0.05)
        assert losses[0.5] == pytest.approx(losses[1.0] / 2, rel=1e-4)

    def test_layers_that_are_not_transferred_do_not_matter(
        self, context: Context, source: Corpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The weights at the start: the first layers are those of the pre-trained model, the others are not."""
        started: list[Any] = []

        def keep(model: Any, *_: Any, **__: Any) -> None:
            started.append({name: value.clone() for name, value in model.body.named_parameters()})

        monkeypatch.setattr(trials, "train", keep)
        torch.manual_seed(5)
        body = SMALL.build(SMALL.vocabulary, 0.0)
        for pretrained, layers in ((body, 1), (body, None), (None, None)):
            fine_tune(pretrained, SMALL, source, Job("", CURVE, 0, 0.5, layers), context, lambda **_: None)
        one, every, nothing = started
        query = "blocks.{}.attention.sublayer.query.weight"
        assert torch.equal(one[query.format(0)], body.get_parameter(query.format(0)))
        assert torch.equal(one[query.format(1)], nothing[query.format(1)])
        assert torch.equal(every[query.format(1)], body.get_parameter(query.format(1)))
        assert torch.equal(one["embedding.weight"][300:], nothing["embedding.weight"][300:])

    def test_steps_are_passes_over_the_examples(self) -> None:
        config = TransferConfig(sizes=(100, 1000, 4000), epochs=(6, 2, 1), fine_batch=16)
        assert [config.fine_steps(amount) for amount in range(3)] == [37, 125, 250]
        with pytest.raises(ValueError, match="few, some and most"):
            TransferConfig(sizes=(100, 100, 4000))

    def test_an_empty_training_set_is_refused(self, monkeypatch: pytest.MonkeyPatch, source: Corpus) -> None:
        monkeypatch.setattr(tasks, "TASKS", {"nothing": lambda _draw: iter(())})
        with pytest.raises(ValueError, match="no example of nothing"):
            labelled("nothing", "train", source, 0, 64, 10)
