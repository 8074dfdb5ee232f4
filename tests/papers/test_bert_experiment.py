"""BERT's experiment: every scale can run, and arms are compared alike."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from allyouneed.evidence import SCALES, Context, Run, run
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import Task
from allyouneed.papers.bert import tasks, trials
from allyouneed.papers.bert.baselines import CommonestTag
from allyouneed.papers.bert.experiment import EXPERIMENT
from allyouneed.papers.bert.figure import NAMES, STRATEGIES
from allyouneed.papers.bert.pretraining import IGNORED
from allyouneed.papers.bert.tasks import Corpus, corpus
from allyouneed.papers.bert.trials import Tagger, TransferConfig, fine_tune, settings

STANDINS = Path(__file__).parents[1] / "standins"


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
def context(tmp_path: Path) -> Context:
    return Context(Task(trials.trial, "bert", 0, SMALL, tmp_path))


SMALL: TransferConfig = EXPERIMENT.scales["smoke"].arms["bert"]


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    found = {result.arm: result.metrics for result in smoke.trials}
    assert list(found) == list(EXPERIMENT.scales["smoke"].arms)
    for claim in EXPERIMENT.claims:
        for arm in claim.test.arms:
            assert claim.test.metric in found[arm]
    for arm, metrics in found.items():
        config = EXPERIMENT.scales["smoke"].arms[arm]
        assert all(math.isfinite(value) for value in metrics.values())
        for task in config.tasks:
            each = [metrics[f"{task}_{size}"] for size in config.sizes]
            assert all(0 <= value <= 1 for value in each)
            assert metrics[task] == sum(each) / len(each)


def test_the_same_trials_give_the_same_metrics(smoke: Run, context: Context) -> None:
    torch.manual_seed(0)
    again = trials.trial(SMALL, context)
    assert again == next(result.metrics for result in smoke.trials if result.arm == "bert")


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
    assert not any(finding.missing for finding in findings.values())


def test_the_figure_has_every_arm(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    assert len(figure.axes) == 4
    for axes in figure.axes[:3]:
        drawn: Any = {line.get_label() for line in axes.lines} - {None}
        assert set(NAMES.values()) <= drawn
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == list(STRATEGIES.values())
    assert "Token task" in svg(figure)


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_what_they_are_pre_trained_on_alone(scale: Any) -> None:
    arms = EXPERIMENT.scales[scale].arms
    differing = {"objective", "next_sentence", "masked", "random", "tasks", "features", "learning_rate", "fine_rate"}
    shared = [
        {key: value for key, value in dataclasses.asdict(config).items() if key not in differing}
        for config in arms.values()
    ]
    assert all(one == shared[0] for one in shared)
    assert arms["no_nsp"].objective == "masked" and not arms["no_nsp"].next_sentence
    assert arms["left_to_right"].causal and not arms["left_to_right"].next_sentence
    assert (arms["mask_only"].masked, arms["random_only"].random) == (1.0, 1.0)
    assert len(arms["bert"].sizes) == len(arms["bert"].fine_steps)


@pytest.mark.parametrize("arm", EXPERIMENT.scales["gpu"].arms)
def test_the_gpu_scale_takes_a_step(arm: str, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    config: TransferConfig = EXPERIMENT.scales["gpu"].arms[arm]
    # As wide and deep, on little: the stand-in has no 8,192 pieces.
    config = dataclasses.replace(
        config,
        batch=2,
        steps=1,
        sizes=(4,),
        fine_steps=(1,),
        fine_batch=2,
        tested=4,
        longest=24,
        tasks=("tagging",),
    )
    small = corpus(200)
    monkeypatch.setattr(trials, "corpus", lambda vocabulary: small)
    metrics = trials.trial(config, context)
    assert all(math.isfinite(value) for value in metrics.values())


class TestTasks:
    @pytest.fixture
    def source(self) -> Corpus:
        return corpus(200)

    def test_no_text_is_in_two_splits(self, source: Corpus) -> None:
        sentences = {
            split: {one.tokens for text in texts for one in text.sentences if len(one.ends) > 6}
            for split, texts in source.texts.items()
        }
        assert all(sentences.values())
        assert not sentences["train"] & sentences["test"]
        assert not sentences["train"] & sentences["validation"]

    def test_each_word_is_asked_at_its_last_piece(self, source: Corpus) -> None:
        found = tasks.tagging(source, "train", 30, 0, 200)
        known = {one.tokens: one for text in source.texts["train"] for one in text.sentences}
        for row, labels in zip(found.tokens, found.labels, strict=True):
            tokens = tuple(row[(row != source.tokenizer.padding)].tolist()[1:-1])
            sentence = known[tokens]
            assert labels[labels != IGNORED].tolist() == list(sentence.tags)
            assert (labels != IGNORED).nonzero()[:, 0].tolist() == [end + 1 for end in sentence.ends]
            # What ends a word is followed by a piece that begins one.
            for end in sentence.ends[:-1]:
                assert not source.tokenizer.pieces[tokens[end + 1]].startswith("##")

    def test_a_cut_row_asks_only_what_it_shows(self, source: Corpus) -> None:
        found = tasks.tagging(source, "train", 40, 0, 10)
        assert found.tokens.shape[1] == 10
        special = (found.tokens == source.tokenizer.separator) | (found.tokens == source.tokenizer.padding)
        assert bool((found.labels[special] == IGNORED).all())

    @pytest.mark.parametrize("draw", [tasks.prose, tasks.pairs])
    def test_labels_are_balanced_and_draws_repeat(self, draw: Any, source: Corpus) -> None:
        first, again, other = (draw(source, "test", 20, seed, 30) for seed in (0, 0, 1))
        assert first.labels.tolist() == [0, 1] * 10
        assert torch.equal(first.tokens, again.tokens)
        assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)

    def test_pairs_are_of_one_text_or_of_two(self, source: Corpus) -> None:
        found = tasks.pairs(source, "train", 60, 0, 40)
        texts = [{one.tokens for one in text.sentences} for text in source.texts["train"]]

        def homes(part: list[int]) -> set[int]:
            return {
                number
                for number, text in enumerate(texts)
                if any(
                    part[: len(sentence)] == list(sentence) or part == list(sentence)[: len(part)] for sentence in text
                )
            }

        for row, kinds, label in zip(
            found.tokens.tolist(), found.segments.tolist(), found.labels.tolist(), strict=True
        ):
            end = row.index(source.tokenizer.separator)
            first = row[1:end]
            second = [token for token, kind in zip(row, kinds, strict=True) if kind == 1][:-1]
            if label == 0:
                assert homes(first) & homes(second)
                assert first != second

    def test_more_than_there_is_is_refused(self, source: Corpus) -> None:
        with pytest.raises(ValueError, match="test has no 2000 sentences"):
            tasks.prose(source, "test", 2000, 0, 30)


class TestCommonestTag:
    def test_is_that_of_each_word_as_it_is_spelled(self) -> None:
        source = corpus(200)
        examples = tasks.tagging(source, "train", 60, 0, 200)
        known = {one.tokens: one for text in source.texts["train"] for one in text.sentences}
        counts: dict[tuple[int, ...], list[int]] = {}
        every: list[int] = []
        for row in examples.tokens:
            sentence = known[tuple(row[row != source.tokenizer.padding].tolist()[1:-1])]
            begins = [0, *(end + 1 for end in sentence.ends[:-1])]
            for begin, end, tag in zip(begins, sentence.ends, sentence.tags, strict=True):
                counts.setdefault(sentence.tokens[begin : end + 1], []).append(tag)
                every.append(tag)
        right = sum(max(found.count(tag) for tag in found) for found in counts.values())
        table = CommonestTag(source, examples)
        assert table.accuracy(examples) == pytest.approx(right / len(every))
        assert right < len(every)
        found = table(examples)
        assert torch.equal(found == IGNORED, examples.labels == IGNORED)
        # A new word gets the tag that is commonest of all.
        piece = examples.tokens.max() + 1
        new = tasks.Examples(torch.full((1, 1), int(piece)), torch.zeros(1, 1), torch.zeros(1, 1).long())
        assert every.count(int(table(new))) == max(every.count(tag) for tag in every)

    def test_nothing_to_count_is_refused(self) -> None:
        examples = tasks.tagging(corpus(200), "train", 3, 0, 20)
        with pytest.raises(ValueError, match="no word of the examples has a tag"):
            CommonestTag(corpus(200), examples._replace(labels=torch.full_like(examples.labels, IGNORED)))


class TestFineTuning:
    def test_a_left_to_right_row_is_read_off_its_end(self) -> None:
        torch.manual_seed(0)
        config = dataclasses.replace(SMALL, objective="left to right", next_sentence=False)
        model = Tagger(config.encoder(), config, 2, per_token=False).eval()
        tokens = torch.tensor([[2, 7, 8, 9, 3, 0, 0], [2, 7, 8, 9, 10, 11, 3]])
        with torch.no_grad():
            before = model(tokens, torch.zeros_like(tokens))
            tokens[:, 3] = 12
            after = model(tokens, torch.zeros_like(tokens))
            alone = model(tokens[:1, :5], torch.zeros_like(tokens[:1, :5]))
        assert bool((before != after).any(1).all())
        torch.testing.assert_close(alone, after[:1], rtol=1e-5, atol=1e-6)

    def test_starts_from_the_pre_trained_weights_and_leaves_them(self, context: Context) -> None:
        torch.manual_seed(0)
        encoder = SMALL.encoder()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        model = Tagger(encoder, SMALL, 3, per_token=True)
        assert all(torch.equal(value, before[name]) for name, value in model.bert.state_dict().items())
        fine_tune(encoder, SMALL, corpus(200), "prose", 0, context, lambda **values: None)
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())

    def test_the_papers_optimiser(self) -> None:
        found = settings(100, 1e-3)
        assert (found.weight_decay, found.betas, found.schedule.warmup) == (0.01, (0.9, 0.999), 10)  # pyright: ignore
