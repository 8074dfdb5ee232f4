"""GPT-3's experiment: every scale can run, tasks that are held out are, and sizes are compared alike."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from allyouneed.data.tasks import task
from allyouneed.evidence import Context, Run, Task, TrialResult, run
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import run_trial
from allyouneed.papers.gpt3 import assemble, corpus, score_tokens, training, trials
from allyouneed.papers.gpt3.corpus import LAYOUT, TRAINED, mixture
from allyouneed.papers.gpt3.experiment import EXPERIMENT, MAPPINGS, MIXTURE, SHOTS
from allyouneed.papers.gpt3.figure import PUBLISHED, across
from allyouneed.papers.gpt3.generated import DIGITS, LETTERS, VOCABULARY, Mappings, accuracy_by_shots, is_held_out
from allyouneed.papers.gpt3.tasks import FREE, OPTIONS, question_types, science
from allyouneed.papers.gpt3.trials import FewShotConfig, build
from allyouneed.training import TrainingConfig, next_token_loss, train

SMOKE = EXPERIMENT.scales["smoke"].arms
OWN = (*MAPPINGS, *MIXTURE)


@pytest.fixture(autouse=True, scope="module")
def standins() -> Iterator[None]:
    """Stand-ins for what would be fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(Path(__file__).parents[1] / "standins"))
        for function in (question_types, science, mixture, trials.published_model):
            function.cache_clear()
        yield
    for function in (question_types, science, mixture, trials.published_model):
        function.cache_clear()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    assert [result.arm for result in smoke.trials] == list(SMOKE)
    for result in smoke.trials:
        names = [*(tried.name for tried in OPTIONS), *FREE] if result.arm in SHOTS else ["shots_0", "shots_1"]
        assert all(0 <= result.metrics[name] <= 1 for name in names)
        if result.arm in OWN:
            parameters = sum(parameter.numel() for parameter in build(SMOKE[result.arm]).parameters())
            assert result.metrics["parameters"] == parameters
    own = {result.arm: result.metrics for result in smoke.trials}
    options = [own["shots_4"][tried.name] for tried in OPTIONS]
    assert own["shots_4"]["options"] == pytest.approx(sum(options) / 3)


def test_what_does_not_fit_is_counted(smoke: Run) -> None:
    """The stand-in for the model reads 512 tokens, and its tokenizer makes many of a text: 16 examples are more."""
    dropped = {result.arm: result.metrics["dropped"] for result in smoke.trials if result.arm in SHOTS}
    assert dropped["shots_0"] == dropped["shots_1"] == 0 < dropped["shots_16"] < 16 * 5


@pytest.mark.parametrize("arm", ["shots_4", "mappings_4", "mixture_3"])
def test_the_same_trial_gives_the_same_metrics(arm: str, smoke: Run, tmp_path: Path) -> None:
    again = run_trial(Task(trials.trial, arm, 0, SMOKE[arm], tmp_path / "trial")).result
    assert again is not None
    assert [again.metrics] == [result.metrics for result in smoke.trials if result.arm == arm]


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    assert not any(finding.missing for finding in findings.values())
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}


def test_the_figure_has_every_task_and_every_size(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    left, middle, right = figure.axes
    drawn = {str(line.get_label()): line for line in left.lines if not str(line.get_label()).startswith("_")}
    assert list(drawn) == list(PUBLISHED.values())
    for name, label in PUBLISHED.items():
        points = dict(zip(drawn[label].get_xdata(), drawn[label].get_ydata(), strict=True))
        assert points == {across(SMOKE[arm].shots): one.metrics[name] for arm, one in trials_of(smoke, SHOTS)}
    for axes, arms, kind in ((middle, MAPPINGS, "mappings"), (right, MIXTURE, "mixture")):
        lines = [line for line in axes.lines if "parameters" in str(line.get_label())]
        for line, (_, result) in zip(lines, trials_of(smoke, arms), strict=True):
            assert list(line.get_ydata()) == [result.metrics[f"shots_{count}"] for count in trials.SHOTS[kind]]
    assert any(line.get_label() == "best possible" for line in middle.lines)
    assert "examples in the prompt" in svg(figure)


def trials_of(smoke: Run, arms: Any) -> list[tuple[str, TrialResult]]:
    return [(result.arm, result) for result in smoke.trials if result.arm in arms]


def test_claims_tell_rising_curves_from_others() -> None:
    """On made-up numbers: what rises is reproduced, what falls contradicted, and what wavers neither."""
    by_id = {claim.id: claim for claim in EXPERIMENT.claims}
    for up, verdict in ((0.05, "reproduced"), (-0.05, "contradicted"), (0.0, "inconclusive")):
        results = [
            TrialResult(arm, seed, {}, {"question_type": 0.3 + x * (up + 0.01 * (-1) ** seed)}, {}, 0.0)
            for arm, x in SHOTS.items()
            for seed in range(5)
        ]
        assert by_id["question_types_rise"].judge(results, range(5)).verdict == verdict
    for sign, verdict in ((1, "reproduced"), (-1, "contradicted")):
        sized = [
            TrialResult(arm, seed, {}, {"slope": sign * 0.1 * math.log(x) + 0.001 * seed}, {}, 0.0)
            for arm, x in MAPPINGS.items()
            for seed in range(5)
        ]
        assert by_id["larger_learn_more_from_examples"].judge(sized, range(5)).verdict == verdict


def test_the_axis_is_that_of_the_arms() -> None:
    for arm, x in SHOTS.items():
        shots = EXPERIMENT.scales["laptop"].arms[arm].shots
        assert arm == f"shots_{shots}" and x == pytest.approx(math.log2(1 + shots), abs=1e-6)


@pytest.mark.parametrize("scale", ["laptop", "gpu"], ids=lambda name: f"{name} scale")
class TestScales:
    @pytest.mark.parametrize("sizes", [MAPPINGS, MIXTURE], ids=["mappings", "mixture"])
    def test_sizes_have_the_ratios_that_claims_say(self, scale: Any, sizes: dict[str, float]) -> None:
        with torch.device("meta"):
            models = [build(EXPERIMENT.scales[scale].arms[arm]) for arm in sizes]
        counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
        for count, size in zip(counts, sizes.values(), strict=True):
            assert count / counts[0] == pytest.approx(size, rel=0.1)

    def test_arms_differ_only_in_what_is_compared(self, scale: Any) -> None:
        arms = EXPERIMENT.scales[scale].arms
        assert list(arms) == [*SHOTS, *OWN]
        assert len({dataclasses.replace(arms[arm], shots=0) for arm in SHOTS}) == 1
        for sizes in (MAPPINGS, MIXTURE):
            # The learning rate is each size's own best, found by the same search.
            shape = {"layers": 3, "width": 1, "heads": 1, "learning_rate": 1.0}
            assert len({dataclasses.replace(arms[arm], **shape) for arm in sizes}) == 1
        assert all(config.split == "test" for config in arms.values())

    def test_the_second_layer_sees_the_band_and_a_third_sees_all(self, scale: Any) -> None:
        assert all(EXPERIMENT.scales[scale].arms[arm].layers >= 3 for arm in OWN)


@pytest.mark.parametrize("arm", OWN)
def test_the_gpu_configuration_is_built_and_stepped(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is but for the rows of its batch, on random tokens, on a CPU in its own precision."""
    scale = EXPERIMENT.scales["gpu"]
    config: FewShotConfig = scale.arms[arm]
    torch.manual_seed(0)
    model = build(config)
    tokens = torch.randint(model.config.vocabulary, (2, min(model.config.positions, 16) + 1))
    fabric = Fabric(accelerator="cpu", devices=1, precision=scale.precision)  # pyright: ignore[reportArgumentType]
    before = model.output_weight.detach().clone()
    result = train(model, lambda step: tokens, next_token_loss, TrainingConfig(1, config.learning_rate), fabric=fabric)
    assert float(result.losses[0]) == pytest.approx(math.log(model.config.vocabulary), rel=0.15)
    assert not torch.equal(model.output_weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


class TestMappings:
    def documents(self, held_out: bool, **changes: int) -> np.ndarray:
        return Mappings(**changes).documents(300, np.random.default_rng(0), held_out=held_out).numpy()

    @pytest.mark.parametrize("held_out", [False, True])
    def test_each_document_has_one_mapping_of_few_letters(self, held_out: bool) -> None:
        rows = self.documents(held_out, letters=3, examples=9)
        assert rows.shape == (300, 19) and (rows[:, 0] == 0).all()
        letters, digits = rows[:, 1::2] - 1, rows[:, 2::2] - 1 - LETTERS
        assert set(np.unique(letters)) == set(range(LETTERS)) and set(np.unique(digits)) == set(range(DIGITS))
        for own, values in zip(letters, digits, strict=True):
            mapped = dict(zip(own, values, strict=True))
            assert len(mapped) <= 3 and all(mapped[letter] == digit for letter, digit in zip(own, values, strict=True))

    def test_no_mapping_that_is_tested_was_trained_on(self) -> None:
        seen = {name: set() for name in (False, True)}
        for held_out, found in seen.items():
            for row in self.documents(held_out, letters=2, examples=12):
                found.add(frozenset(zip(row[1::2], row[2::2], strict=True)))
        assert not seen[True] & seen[False]
        assert all(len(found) > 200 for found in seen.values())

    def test_the_order_of_a_mapping_does_not_decide_and_a_fifth_is_held_out(self) -> None:
        generator = np.random.default_rng(0)
        letters = generator.permuted(np.tile(np.arange(LETTERS), (5000, 1)), axis=1)[:, :3]
        digits = generator.integers(DIGITS, size=letters.shape)
        chosen = is_held_out(letters, digits)
        assert (chosen == is_held_out(letters[:, ::-1], digits[:, ::-1])).all()
        assert chosen.mean() == pytest.approx(0.2, abs=0.03)

    def test_the_best_accuracy_is_that_of_a_reader_with_a_memory(self) -> None:
        rows = Mappings(3, 8).documents(4000, np.random.default_rng(1), held_out=False).numpy()
        right = np.zeros(8)
        for row in rows:
            seen: dict[int, int] = {}
            for place, (letter, digit) in enumerate(zip(row[1::2], row[2::2], strict=True)):
                right[place] += 1.0 if letter in seen else 1 / DIGITS
                seen[letter] = digit
        assert right / 4000 == pytest.approx([Mappings(3).best(shots) for shots in range(8)], abs=0.025)

    def test_one_pass_gives_what_the_harness_gives(self) -> None:
        """The share of documents whose digit has the highest score among ten, after each number of examples."""
        torch.manual_seed(0)
        model = build(FewShotConfig(kind="mappings", width=16, heads=1, examples=4)).eval()
        documents = Mappings(3, 4).documents(40, np.random.default_rng(0), held_out=True)
        found = accuracy_by_shots(model, documents)
        options = [[1 + LETTERS + digit] for digit in range(DIGITS)]
        for shots in range(4):
            right = 0
            for row in documents.tolist():
                prefix, question, answer = row[: 1 + 2 * shots], row[1 + 2 * shots : 2 + 2 * shots], row[2 + 2 * shots]
                ((scores,),) = [score_tokens(model, prefix, [question], [options])]
                right += max(range(DIGITS), key=scores.__getitem__) == answer - 1 - LETTERS
            assert float(found[shots]) == pytest.approx(right / 40)

    def test_the_vocabulary_is_what_there_is(self) -> None:
        rows = self.documents(False)
        assert rows.max() == VOCABULARY - 1 and rows.min() == 0


class TestMixture:
    def test_tasks_that_are_tried_are_not_trained_on(self) -> None:
        assert not {tried.name for tried in OPTIONS} & set(TRAINED)
        assert not any("qasc" in name or name == "question_type" for name in TRAINED)

    def test_each_document_is_of_one_task(self) -> None:
        text = mixture(300, 10, 150)
        rows = text.documents(40, 120, np.random.default_rng(0))
        assert rows.shape == (40, 120) and (rows[:, 0] == text.end).all()
        assert (rows == text.end).sum() == 40
        parts = {name: known(name) for name in text.examples}
        kinds = set()
        for row in rows.tolist():
            written = text.tokenizer.decode(row[1:])
            fitting = [
                name for name in text.examples if all(part in parts[name] for part in written.split("\n\n")[:-1])
            ]
            assert fitting
            kinds.add(fitting[0])
        assert len(kinds) > 5

    def test_is_read_as_prompts_are_written(self) -> None:
        """A document that is cut after a question is the prompt for it."""
        text = mixture(300, 10, 150)
        examples = task("wikidata", "train").examples[:2]
        prompt = assemble(text.tokenizer, examples, layout=LAYOUT, start=[text.end])
        document = [text.end]
        for number, one in enumerate(examples):
            document += text.tokenizer.encode(corpus.written(one, first=number == 0))
        assert list(prompt.tokens) == document
        own = text.examples["wikidata"]
        rows = text.documents(300, 40, np.random.default_rng(0)).tolist()
        assert any(row[1 : 1 + len(first)] == list(first) for row in rows for first, _ in own)

    def test_overlaps_are_found(self) -> None:
        shown = next(one.text for one in corpus.training_examples("vitaminc", 10, 150) if len(one.text.split()) > 9)
        assert trials.overlapping((shown, "no word of this stands there in such a row"), 10, 150) == [True, False]


def known(name: str) -> set[str]:
    return {corpus.written(one, first=True) for one in task(name, "train").examples}


class TestTasks:
    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_every_question_can_be_chosen_and_answered(self, split: Any) -> None:
        for tried in OPTIONS:
            examples = tried.examples(split, 200)
            assert examples
            for one in examples:
                assert one.answers[0] in one.options and len(set(one.options)) == len(one.options) > 1
                assert len(one.text) <= 200

    def test_types_have_no_full_stop_and_are_the_same_in_all_splits(self) -> None:
        assert question_types("train").options == question_types("test").options
        assert not any(option.endswith(".") for option in question_types("test").options)

    def test_science_has_one_right_option_and_three_wrong_ones(self) -> None:
        wrong = {text for one in task("qasc_wrong", "train").examples for text in one.answers}
        for one in science("train").examples:
            assert len(one.options) == 4 and one.options == tuple(sorted(one.options))
            assert sum(f"{option}." in wrong or option in wrong for option in one.options) >= 3


def test_curve_has_the_slope_of_a_line() -> None:
    found = training.curve({shots: 0.2 + 0.1 * math.log2(1 + shots) for shots in (0, 1, 3, 7)})
    assert found["slope"] == pytest.approx(0.1)
    assert found["shots_3"] == pytest.approx(0.4)


def test_models_of_one_seed_read_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    class ReadError(Exception):
        """Raised in place of a training."""

    def keep(model: Any, batches: Any, *arguments: Any, **options: Any) -> Any:
        read.append(torch.cat([batches(step) for step in range(3)]))
        raise ReadError

    monkeypatch.setattr(training, "train", keep)
    for arm in ("mappings_1", "mappings_16", "mixture_1", "mixture_10"):
        (tmp_path / arm).mkdir()
        with pytest.raises(ReadError):
            trials.trial(SMOKE[arm], Context(Task(trials.trial, arm, 0, SMOKE[arm], tmp_path / arm)))
    assert torch.equal(read[0], read[1]) and torch.equal(read[2], read[3])
    assert len({tuple(map(tuple, batch.tolist())) for batch in read[0].split(1)}) > 1


def test_examples_of_a_seed_are_shared_by_all_numbers_of_shots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[Any]] = {}
    scored: Any = trials.score_options

    def keep(model: Any, tokenizer: Any, prompt: Any, questions: Any, **options: Any) -> Any:
        asked.setdefault(arm, []).append((prompt.examples + prompt.dropped, tuple(questions)))
        return scored(model, tokenizer, prompt, questions, **options)

    monkeypatch.setattr(trials, "score_options", keep)
    for arm in ("shots_1", "shots_4"):
        (tmp_path / arm).mkdir()
        trials.trial(SMOKE[arm], Context(Task(trials.trial, arm, 3, SMOKE[arm], tmp_path / arm)))
    for (one, questions), (four, same) in zip(asked["shots_1"], asked["shots_4"], strict=True):
        assert four[:1] == one and len(four) == 4 and same == questions
        assert not set(four) & set(questions)
