"""GPT's experiment: every scale can run, and arms are compared alike."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from allyouneed.data import documents
from allyouneed.data.brown import brown
from allyouneed.evidence import SCALES, Context, Run, Task, run
from allyouneed.evidence.figures import svg
from allyouneed.papers.gpt1 import GPT1, Examples, RecurrentLanguageModel, Special, baselines, trials
from allyouneed.papers.gpt1.batches import OfOneLength, in_order_of_length, trimmed
from allyouneed.papers.gpt1.experiment import EXPERIMENT
from allyouneed.papers.gpt1.figure import NAMES
from allyouneed.papers.gpt1.pretraining import PARTS, PRETRAINED
from allyouneed.papers.gpt1.tasks import CLOSED, FORMS, LABELLED, SINGULAR, Corpus, Draw, corpus, labelled, typed
from allyouneed.papers.gpt1.trials import Job, TransferConfig, fine_tune
from allyouneed.papers.gpt1.zero_shot import likelihoods, pairs, preferred

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


def test_every_arm_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    found = {result.arm: result.metrics for result in smoke.trials}
    assert list(found) == list(EXPERIMENT.scales["smoke"].arms)
    for arm, metrics in found.items():
        assert all(math.isfinite(value) for value in metrics.values())
        assert all(0 <= value <= 1 for name, value in metrics.items() if name.endswith("accuracy"))
        # Weights that nothing was trained on have no parts.
        assert ("zero_shot_8" in metrics) == EXPERIMENT.scales["smoke"].arms[arm].pretrained


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


def test_the_figure_has_layers_parts_and_baselines(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    layers, parts, zero = figure.axes

    def drawn(axes: Any) -> dict[str, list[float]]:
        lines: dict[str, list[float]] = {}
        for line in axes.lines:
            if not str(line.get_label()).startswith("_"):
                lines[str(line.get_label())] = [float(value) for value in line.get_ydata()]
        return lines

    own = next(result.metrics for result in smoke.trials if result.arm == "transformer")
    assert set(drawn(layers)) == {NAMES[arm] for arm in EXPERIMENT.scales["smoke"].arms} | {NAMES["bag_of_words"]}
    assert drawn(layers)["transformer"] == [
        own["layers_0_accuracy"],
        *(own[f"layers_{n}_accuracy"] for n in (1, 2)),
        own["accuracy"],
    ]
    assert drawn(parts)["transformer"] == [*(own[f"part_{part}_accuracy"] for part in PARTS[1:-1]), own["accuracy"]]
    assert set(drawn(zero)) == {"transformer", "LSTM", "bigram model"}
    assert drawn(zero)["bigram model"] == [own["bigrams"]] * len(PARTS)
    assert "Layers transferred" in svg(figure)


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
        assert [(arm.model, arm.pretrained, arm.auxiliary) for arm in arms.values()] == [
            ("transformer", True, 0.5),
            ("transformer", False, 0.5),
            ("transformer", True, 0.0),
            ("lstm", True, 0.5),
        ]
        # One thing differs: the rates of a model are the same in all its arms.
        rates = {(arm.model, arm.learning_rate, arm.fine_rate) for arm in arms.values()}
        assert len(rates) == 2
        assert len({arm.pretraining for arm in arms.values()}) == 2

    def test_the_rival_has_as_many_parameters(self, scale: Any) -> None:
        with torch.device("meta"):
            models = {
                arm: config.pretraining.build(config.vocabulary, 0.0)
                for arm, config in EXPERIMENT.scales[scale].arms.items()
            }
        assert isinstance(models["transformer"], GPT1) and isinstance(models["lstm"], RecurrentLanguageModel)
        counts = {arm: sum(parameter.numel() for parameter in model.parameters()) for arm, model in models.items()}
        assert counts["lstm"] == pytest.approx(counts["transformer"], rel=0.01)
        assert counts["none"] == counts["transformer"]


@pytest.mark.parametrize("arm", EXPERIMENT.scales["gpu"].arms)
def test_the_gpu_scale_takes_a_step(arm: str, tmp_path: Path) -> None:
    config: TransferConfig = EXPERIMENT.scales["gpu"].arms[arm]
    # As wide and deep, on little: the stand-in has no 8,192 pairs.
    config = dataclasses.replace(
        config,
        vocabulary=SMALL.vocabulary,
        share=SMALL.share,
        length=64,
        batch=2,
        steps=8,
        examples=4,
        epochs=1,
        fine_batch=4,
        scored=4,
        ablations=False,
    )
    metrics = trials.trial(config, Context(Task(trials.trial, arm, 0, config, tmp_path)))
    assert all(math.isfinite(value) for value in metrics.values())


class TestPretraining:
    def test_weights_are_kept_along_the_way(self, context: Context) -> None:
        folder = context.stage(PRETRAINED, SMALL.pretraining)
        kept = [load_file(folder / f"{part}.safetensors") for part in PARTS]
        name = "embedding.weight"
        for one, next_ in itertools.pairwise(kept):
            assert not torch.equal(one[name], next_[name])
        # The last are those at the end of the schedule, and load as a model that was never dropped from.
        body = SMALL.pretraining.load(folder)
        assert torch.equal(body.get_parameter(name), kept[-1][name])

    def test_arms_of_one_model_share_a_stage(self, context: Context) -> None:
        arms = EXPERIMENT.scales["smoke"].arms
        folders = {arm: context.stage(PRETRAINED, config.pretraining) for arm, config in arms.items()}
        assert folders["transformer"] == folders["none"] == folders["without_auxiliary"] != folders["lstm"]

    def test_fewer_steps_than_parts_are_refused(self) -> None:
        with pytest.raises(ValueError, match="steps is 7: there must be 8 or more"):
            dataclasses.replace(SMALL.pretraining, steps=7)


class TestTasks:
    def test_unlabelled_text_is_the_beginnings_of_works_and_half_of_brown(self, source: Corpus) -> None:
        whole = [source.tokenizer.encode(text[: int(SMALL.share * len(text))]) for text in documents("train")]
        begun = [token for tokens in whole for token in tokens]
        assert source.tokens[: len(begun)].tolist() == begun
        read = [text for place, text in enumerate(brown("train")) if place % LABELLED]
        behind = [token for text in read for token in source.tokenizer.encode("\n".join(map(typed, text.words)))]
        assert source.tokens[len(begun) :].tolist() == behind
        assert source.special == Special(300, 301, 302)

    def test_labelled_sentences_are_of_texts_that_are_not_read_before(self, source: Corpus) -> None:
        read = {words for place, text in enumerate(brown("train")) if place % LABELLED for words in text.words}
        drawn = set(Draw("train", source, 0, 64).sentences())
        assert drawn and not drawn & read
        assert not drawn & set(Draw("test", source, 0, 64).sentences())

    def test_options_differ_in_the_verb_alone_and_the_right_one_was_written(self, source: Corpus) -> None:
        found = labelled("test", source, 0, 64, 50)
        assert found.tokens.shape[1] == 2 and set(found.labels.tolist()) == {0, 1}
        written = {typed(words).lower() for words in Draw("test", source, 0, 64).sentences()}
        several = []
        for rows, label in zip(found.tokens.tolist(), found.labels.tolist(), strict=True):
            assert all(row[0] == source.special.start for row in rows)
            texts = [source.tokenizer.decode(row[1 : row.index(source.special.extract)]) for row in rows]
            (before, right), (same, wrong) = (text.rsplit(" ", 1) for text in (texts[label], texts[1 - label]))
            assert before == same and FORMS[right] == wrong
            assert before.rsplit(" ", 1)[-1] not in CLOSED
            assert any(sentence.startswith(f"{before} {right} ") for sentence in written)
            several.append(right not in SINGULAR)
        assert abs(several.count(True) - several.count(False)) <= 1

    def test_fewer_examples_are_the_first_of_more(self, source: Corpus) -> None:
        few, more, other = (labelled("train", source, seed, 64, n) for seed, n in ((3, 10), (3, 30), (4, 10)))
        assert few.labels.tolist() == more.labels[:10].tolist()
        assert torch.equal(few.tokens, more.tokens[:10, :, : few.tokens.shape[-1]])
        assert other.tokens.shape != few.tokens.shape or not torch.equal(other.tokens, few.tokens)

    def test_what_is_too_long_is_left_out(self, source: Corpus) -> None:
        assert labelled("train", source, 0, 20, 500).tokens.shape[-1] <= 20
        with pytest.raises(ValueError, match="no choice has rows of 3 tokens"):
            labelled("train", source, 0, 3, 500)


class TestBaselines:
    def test_a_bag_of_words_finds_what_words_tell(self) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 2, (200,), generator=generator)
        tokens = torch.randint(1, 40, (200, 2, 6), generator=generator)
        meaningless = tokens.clone()
        tokens[torch.arange(200), labels, 3] = 40
        examples = Examples(tokens, labels)
        half = [Examples(tokens[part], labels[part]) for part in (slice(100), slice(100, 200))]
        assert baselines.bag_of_words(*half, vocabulary=41) > 0.95
        assert baselines.majority(examples) == pytest.approx(max(labels.float().mean(), 1 - labels.float().mean()))
        blind = [Examples(meaningless[part], labels[part]) for part in (slice(100), slice(100, 200))]
        assert baselines.bag_of_words(*blind, vocabulary=41) < 0.75

    def test_bigrams_prefer_what_often_follows(self) -> None:
        special = Special(8, 9, 10)
        model = baselines.Bigrams(torch.tensor([1, 2, 3, 4, 5, 6] * 50), 8)
        assert model(torch.tensor([[1]])).exp().sum() == pytest.approx(1.0)
        tokens = torch.tensor([[[8, 1, 2, 3, 10, 0], [8, 1, 2, 5, 10, 0]], [[8, 2, 5, 10, 0, 0], [8, 2, 3, 10, 0, 0]]])
        asked = pairs(Examples(tokens, torch.tensor([0, 1])), special)
        assert asked == [([1, 2, 3], [1, 2, 5]), ([2, 3], [2, 5])]
        assert preferred(model, asked) == preferred(model, asked, batch=1) == 1.0
        assert preferred(model, [asked[0], asked[1][::-1]]) == 0.5
        # What finds both alike prefers neither.
        assert preferred(lambda tokens: torch.zeros(*tokens.shape, 8), asked) == 0.0

    def test_likelihoods_are_means_over_what_is_no_padding(self) -> None:
        torch.manual_seed(0)
        table = torch.randn(20, 20).log_softmax(-1)
        found = likelihoods(lambda tokens: table[tokens], [[1, 2, 3], [4, 5, 6, 7, 8]])
        assert found[0] == pytest.approx(float(table[1, 2] + table[2, 3]) / 2)
        assert found[1] == pytest.approx(float(sum(table[i, i + 1] for i in range(4, 8))) / 4)


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
        body = SMALL.pretraining.build(SMALL.vocabulary, 0.0)
        before = {name: value.clone() for name, value in body.named_parameters()}
        with_body = fine_tune(body, SMALL, source, Job(), context, lambda **_: None)
        assert all(torch.equal(value, before[name]) for name, value in body.named_parameters())
        assert with_body == fine_tune(body, SMALL, source, Job(), context, lambda **_: None)

    def test_the_auxiliary_objective_is_trained_on_where_it_is_asked_for(
        self, context: Context, source: Corpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loss that an arm trains on: with λ the language model's is in it, without there are the labels' alone."""
        losses: dict[float, float] = {}

        def take(model: Any, batches: Any, loss: Any, *_: Any, **__: Any) -> None:
            model.eval()
            tokens, labels = batches(0)
            total, _ = loss(model, (tokens, labels))
            alone = torch.nn.functional.cross_entropy(model(trimmed(tokens)), labels, reduction="sum")
            losses[config.auxiliary] = float((total - alone).detach()) / len(labels)

        monkeypatch.setattr(trials, "train", take)
        torch.manual_seed(5)
        body = SMALL.pretraining.build(SMALL.vocabulary, 0.0)
        arms = EXPERIMENT.scales["smoke"].arms
        for config in (arms["transformer"], arms["without_auxiliary"], dataclasses.replace(SMALL, auxiliary=1.0)):
            fine_tune(body, config, source, Job(), context, lambda **_: None)
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
        body = SMALL.pretraining.build(SMALL.vocabulary, 0.0)
        untrained = dataclasses.replace(SMALL, pretrained=False)
        for config, layers in ((SMALL, 1), (SMALL, None), (untrained, None)):
            fine_tune(body, config, source, Job("", layers=layers), context, lambda **_: None)
        one, every, nothing = started
        query = "blocks.{}.attention.sublayer.query.weight"
        assert torch.equal(one[query.format(0)], body.get_parameter(query.format(0)))
        assert torch.equal(one[query.format(1)], nothing[query.format(1)])
        assert torch.equal(every[query.format(1)], body.get_parameter(query.format(1)))
        assert torch.equal(one["embedding.weight"][300:], nothing["embedding.weight"][300:])

    def test_jobs_name_what_they_measure(self) -> None:
        prefixes = [job.prefix for job in trials.jobs(SMALL)]
        assert prefixes == ["", "layers_0_", "layers_1_", "layers_2_", "part_1_", "part_2_", "part_4_"]
        assert trials.jobs(dataclasses.replace(SMALL, ablations=False)) == [Job()]
        assert trials.fine_steps(dataclasses.replace(SMALL, examples=1000, epochs=2, fine_batch=16)) == 125
