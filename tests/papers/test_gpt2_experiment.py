"""GPT-2's experiment: every scale can run, and sizes are compared alike."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from allyouneed.data import corpus
from allyouneed.data.batches import RandomWindows
from allyouneed.data.brown import TaggedText
from allyouneed.evidence import Context, Run, Task, TrialResult, run
from allyouneed.evidence.figures import svg
from allyouneed.papers.gpt2 import ByteLevelBPE, strings, texts, trials
from allyouneed.papers.gpt2.experiment import EXPERIMENT, SIZES
from allyouneed.papers.gpt2.figure import NAMES
from allyouneed.papers.gpt2.trials import SEEN, UNSEEN, ZeroShotConfig, build
from allyouneed.training import TrainingConfig, next_token_loss, train

pytestmark = pytest.mark.usefixtures("standins")

SMALL = EXPERIMENT.scales["smoke"].arms["size_1"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    assert [result.arm for result in smoke.trials] == list(EXPERIMENT.scales["smoke"].arms)
    *sized, strings = smoke.trials
    for result in sized:
        # Three steps are no training: about as many bits as a token's choice among all of them.
        assert all(1 < result.metrics[kind] < math.log2(288) for kind in (*SEEN, *UNSEEN))
        assert result.metrics["gap"] == pytest.approx(result.metrics["test"] / result.metrics["train"] - 1)
        config = EXPERIMENT.scales["smoke"].arms[result.arm]
        assert result.metrics["parameters"] == sum(parameter.numel() for parameter in build(config).parameters())
        assert result.costs["step_seconds"] > 0
    assert strings.metrics["changed"] == 0
    # All of the random ones, 1,086 of every character, and the seven texts.
    assert strings.metrics["strings"] == EXPERIMENT.scales["smoke"].arms["strings"].strings + 1086 + 7


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    again = run(EXPERIMENT, "smoke", folder=tmp_path, in_process=True)
    assert [result.metrics for result in again.trials] == [result.metrics for result in smoke.trials]


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    assert not any(finding.missing for finding in findings.values())
    # One seed is too few for a verdict, but for the exact claim.
    verdicts = {id: finding.verdict for id, finding in findings.items()}
    assert verdicts.pop("any_string_comes_back") == "reproduced"
    assert set(verdicts.values()) == {"inconclusive"}


def test_the_figure_has_every_kind_of_text_at_every_size(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    sizes = [result.metrics["parameters"] for result in smoke.trials if "parameters" in result.metrics]
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        drawn |= {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert list(drawn) == list(NAMES.values())
    for kind, name in NAMES.items():
        assert list(drawn[name].get_xdata()) == sizes
        expected = [result.metrics[kind] for result in smoke.trials if kind in result.metrics]
        assert list(drawn[name].get_ydata()) == expected
    assert "bits per byte" in svg(figure)


def test_claims_tell_falling_losses_from_others() -> None:
    """On made-up losses: straight lines down are reproduced, up contradicted, and a sudden drop is no line."""
    by_kind = {claim.test.metric: claim for claim in EXPERIMENT.claims}
    losses = {
        "test": lambda size: 3 - 0.2 * math.log(size),
        "train": lambda size: 3 + 0.2 * math.log(size),
        "verses": lambda size: 3.0 if size < 27 else 2.0,
    }
    expected = {"test": "reproduced", "train": "contradicted", "verses": "inconclusive"}
    for kind, loss in losses.items():
        results = [
            TrialResult(arm, seed, {}, {kind: loss(size) + 0.001 * seed * size**0.1}, {}, 0.0)
            for arm, size in SIZES.items()
            for seed in range(5)
        ]
        assert by_kind[kind].judge(results, range(5)).verdict == expected[kind]


@pytest.mark.parametrize("scale", ["laptop", "gpu"], ids=lambda name: f"{name} scale")
class TestScales:
    def test_sizes_have_the_ratios_that_claims_say(self, scale: Any) -> None:
        with torch.device("meta"):
            models = {arm: build(EXPERIMENT.scales[scale].arms[arm]) for arm in SIZES}
        counts = {arm: sum(parameter.numel() for parameter in model.parameters()) for arm, model in models.items()}
        for arm, size in SIZES.items():
            assert counts[arm] / counts["size_1"] == pytest.approx(size, rel=0.1)

    def test_arms_differ_only_in_what_is_compared(self, scale: Any) -> None:
        arms: dict[str, ZeroShotConfig] = dict(EXPERIMENT.scales[scale].arms)
        assert list(arms) == [*SIZES, "strings"]
        assert [config.task for config in arms.values()] == ["zero-shot"] * 4 + ["round trip"]
        # The learning rate is each size's own best, found by the same search.
        own = {"task": "zero-shot", "layers": 1, "width": 1, "heads": 1, "learning_rate": 1.0}
        assert len({dataclasses.replace(config, **own) for config in arms.values()}) == 1
        assert all(config.step_tokens % config.length == 0 for config in arms.values())


@pytest.mark.parametrize("arm", SIZES)
def test_the_gpu_configuration_is_built_and_stepped(arm: str) -> None:
    """As it is but for the rows of its batch, on random tokens, on a CPU in its own precision."""
    scale = EXPERIMENT.scales["gpu"]
    config: ZeroShotConfig = scale.arms[arm]
    torch.manual_seed(0)
    model = build(config)
    batches = RandomWindows(torch.randint(config.vocabulary, (5000,)), config.length, 1, seed=0)
    fabric = Fabric(accelerator="cpu", devices=1, precision=scale.precision)  # pyright: ignore[reportArgumentType]
    before = model.output_weight.detach().clone()
    result = train(model, batches, next_token_loss, TrainingConfig(1, config.learning_rate), fabric=fabric)
    assert float(result.losses[0]) == pytest.approx(math.log(config.vocabulary), rel=0.1)
    assert not torch.equal(model.output_weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


class TestTexts:
    def test_held_out_stretches_are_of_the_same_works_and_none_is_trained_on(self) -> None:
        seen, held_out = texts.stretches("train"), texts.stretches("test")
        assert sum(map(len, (*seen, *held_out))) == len(corpus("train"))
        assert len(held_out) == pytest.approx(len(seen) / 15, rel=0.05)
        assert not set(seen) & set(held_out)
        assert any("Elinor" in text for text in held_out) and any("Congress" in text for text in held_out)
        laptop = EXPERIMENT.scales["laptop"].arms["size_1"].stretches
        assert texts.training_text(laptop) == "".join(texts.spread(seen, laptop))
        assert "Elinor" in texts.training_text(laptop) and "Congress" in texts.training_text(laptop)

    def test_pieces_are_spread_evenly(self) -> None:
        pieces = list("abcdefghij")
        assert texts.spread(pieces, 5) == list("acegi")
        assert texts.spread(pieces, 3) == list("adg")
        assert texts.spread(pieces, None) == texts.spread(pieces, 99) == pieces

    @pytest.mark.parametrize("kind", [*SEEN, *UNSEEN])
    def test_there_is_as_much_of_every_kind_as_is_asked_for(self, kind: str) -> None:
        # The stand-in for the Brown corpus is small.
        asked = 4096 if kind == "brown" else 65_536
        text = texts.evaluated_text(kind, 80, asked)
        assert len(text) == asked
        if kind != "train":
            assert text[:500] not in texts.training_text(80)

    def test_kinds_are_what_they_are_called(self) -> None:
        found = {kind: texts.evaluated_text(kind, 80, 65_536) for kind in UNSEEN if kind != "brown"}
        telling = {"verses": "Yahweh", "manual": "expression", "code": "    def ", "spanish": " Jehová"}
        for kind, word in telling.items():
            assert [other for other, text in found.items() if text.count(word) > 20] == [kind]

    def test_prose_is_printed_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words = ["He", "said", ",", "``", "No", "(", "or", "yes", ")", ";", "3.5", "of", "them", "!", "''", "--"]
        text = TaggedText("news", (tuple(words), ("Why", "?")), ((), ()))
        monkeypatch.setattr(texts, "brown", lambda split: [text, text])
        expected = 'He said, "No (or yes); 3.5 of them!" --\nWhy?'
        assert inspect.unwrap(texts.prose)() == f"{expected}\n\n{expected}"

    def test_the_vocabulary_is_learned_from_what_is_trained_on(self) -> None:
        ours = trials.tokenizer(SMALL.vocabulary, SMALL.stretches)
        again = ByteLevelBPE.train(["".join(texts.spread(texts.stretches("train"), 4))], SMALL.vocabulary)
        text = texts.evaluated_text("verses", 4, 2048)
        assert ours.encode(text) == again.encode(text)


class TestScores:
    def test_are_the_information_in_the_bytes(self, tmp_path: Path) -> None:
        """Token by token, by a plain softmax, over the bytes of the text that they stand for."""
        torch.manual_seed(0)
        model = build(dataclasses.replace(SMALL, width=16))
        encoder = trials.tokenizer(SMALL.vocabulary, SMALL.stretches)
        for kind in ("verses", "spanish"):
            ids = trials.tokens(kind, SMALL).long()
            windows = (len(ids) - 1) // SMALL.length
            bits, scored = 0.0, 0
            for window in range(windows):
                part = ids[window * SMALL.length : (window + 1) * SMALL.length + 1]
                with torch.no_grad():
                    chances = model(part[None, :-1])[0].double().log_softmax(-1)
                bits -= float(chances.gather(1, part[1:, None]).sum()) / math.log(2)
                scored += sum(len(encoder.decode([token]).encode()) for token in part[1:].tolist() if token > 255)
                scored += int((part[1:] < 256).sum())
            assert trials.bits_per_byte(model, kind, SMALL, context(tmp_path)) == pytest.approx(bits / scored, rel=1e-5)

    def test_do_not_depend_on_how_windows_are_batched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        model = build(SMALL)
        expected = trials.bits_per_byte(model, "code", SMALL, context(tmp_path))
        windows: Any = trials.consecutive_windows
        monkeypatch.setattr(trials, "consecutive_windows", lambda ids, length, batch: windows(ids, length, 3))
        assert trials.bits_per_byte(model, "code", SMALL, context(tmp_path)) == pytest.approx(expected, rel=1e-6)


def context(folder: Path) -> Context:
    return Context(Task(trials.trial, "arm", 0, SMALL, folder))


class TestStrings:
    def test_are_as_many_as_asked_for_and_of_all_kinds(self) -> None:
        drawn = [*strings.random_strings(3000, seed=0)]
        assert len(drawn) == 3000 and drawn[0] == "" and max(map(len, drawn)) > 5000
        joined = "".join(drawn)
        for sign in ("a", "\0", "\n", "\u3000", "一", "ﬁ", "🇳🇱", "👩‍👩‍👧‍👦", "<|endoftext|>"):
            assert sign in joined
        for low, high in ((0x370, 0x400), (0x620, 0x650), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x10000, 0x13000)):
            assert len({character for character in joined if low <= ord(character) < high}) > 20
        assert drawn != [*strings.random_strings(3000, seed=1)]
        assert drawn == [*strings.random_strings(3000, seed=0)]
        assert [*strings.random_strings(2, seed=0)] == ["", " "]

    def test_every_character_is_there_once(self) -> None:
        characters = "".join(strings.every_character())
        assert len(characters) == len(set(characters)) == 1_112_064

    def test_a_lossy_tokenizer_is_found_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Lossy:
            def encode(self, text: str) -> list[int]:
                return [ord(character) for character in text.lower()]

            def decode(self, tokens: list[int]) -> str:
                return "".join(map(chr, tokens))

        monkeypatch.setattr(trials, "tokenizer", lambda *arguments: Lossy())
        config = dataclasses.replace(SMALL, task="round trip", strings=20)
        assert trials.trial(config, context(tmp_path))["changed"] > 10


def test_models_of_one_seed_read_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Tensor] = []

    def keep(model: Any, batches: RandomWindows, *arguments: Any, **options: Any) -> Any:
        read.append(torch.cat([batches(step) for step in range(3)]))
        return train(model, batches, *arguments, **options)

    monkeypatch.setattr(trials, "train", keep)
    for arm in ("size_1", "size_9"):
        (tmp_path / arm).mkdir()
        trials.trial(EXPERIMENT.scales["smoke"].arms[arm], context(tmp_path / arm))
    assert torch.equal(*read)
