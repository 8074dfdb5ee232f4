"""The experiment: every scale can run, loads are the same for those that are compared, and waste is counted right."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from allyouneed.evidence import SCALES, Context, Run, Task, run
from allyouneed.evidence.figures import svg
from allyouneed.papers.llama1 import Llama
from allyouneed.papers.serving import Engine, Limits, StaticScheduler, trials
from allyouneed.papers.serving.blocks import BlockPool
from allyouneed.papers.serving.configs import ServingConfig
from allyouneed.papers.serving.experiment import BLOCKS, EXPERIMENT
from allyouneed.papers.serving.loads import (
    Arrival,
    Told,
    fill_memory,
    first_token_steps,
    full_step_seconds,
    heavy_tailed,
    play,
    service_times,
)
from allyouneed.papers.serving.requests import Request
from allyouneed.papers.serving.scheduler import Scheduler
from allyouneed.papers.serving.speculative_trials import FEW, chances, chi_square, reader
from allyouneed.papers.serving.trials import CONTEXT, arrivals, model_config, random_model
from allyouneed.text import Sampling, probabilities

pytestmark = pytest.mark.usefixtures("standins")

SMOKE: dict[str, ServingConfig] = dict(EXPERIMENT.scales["smoke"].arms)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def context_in(folder: Path, config: ServingConfig, seed: int = 0) -> Context:
    return Context(Task(trials.trial, "arm", seed, config, folder))


def test_every_metric_that_a_claim_names_is_measured(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    assert [result.arm for result in smoke.trials] == list(SMOKE)
    measured = {result.arm: {**result.metrics, **result.costs} for result in smoke.trials}
    for claim in EXPERIMENT.claims:
        assert all(claim.test.metric in measured[arm] for arm in claim.test.arms), claim.id
    assert all(math.isfinite(value) for values in measured.values() for value in values.values())
    assert all(values.get("changed", 0) == 0 for values in measured.values())
    for arm in ("static_saturated", "continuous_saturated", "prompts_in_chunks", "prompts_whole"):
        assert measured[arm]["first_p50"] <= measured[arm]["first_p99"]
        assert measured[arm]["tokens_a_second"] > 0
    # Both schedulers were given the same requests.
    static, continuous = (measured[f"{kind}_saturated"] for kind in ("static", "continuous"))
    assert static["generated"] == continuous["generated"] and static["tokens_a_step"] <= continuous["tokens_a_step"]
    draft = measured["draft"]
    assert all(1 <= draft[f"tokens_a_step_of_16_at_{most}"] <= most + 1 for most in (1, 3))
    assert draft["independent_of_16_at_1"] == pytest.approx(1 + draft["acceptance_of_16_at_1"])


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    again = run(EXPERIMENT, "smoke", folder=tmp_path, in_process=True)
    assert [result.metrics for result in again.trials] == [result.metrics for result in smoke.trials]


def test_every_claim_is_judged(smoke: Run) -> None:
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in EXPERIMENT.claims]
    assert not any(finding.missing for finding in findings.values())


def test_the_figure_has_every_load_and_every_size(smoke: Run) -> None:
    figure = EXPERIMENT.figure(smoke.trials)
    drawn = [
        {line.get_label(): len(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}
        for axes in figure.axes
    ]
    assert drawn == [
        {"static batching": 7, "continuous batching": 7},
        {"in 16 contexts of 2,048 tokens": len(BLOCKS)},
        {"draft of width 16": 2, "if accepted independently": 2},
    ]
    assert "Waiting" in svg(figure)


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_compared_differs_in_one_number(scale: Any) -> None:
    arms: dict[str, ServingConfig] = dict(EXPERIMENT.scales[scale].arms)
    for task in ("saturated", "loads"):
        assert arms[f"static_{task}"] == dataclasses.replace(arms[f"continuous_{task}"], scheduling="static")
    chunks, whole = arms["prompts_in_chunks"], arms["prompts_whole"]
    assert dataclasses.replace(chunks, max_batched_tokens=whole.max_batched_tokens) == whole
    # A whole prompt fits into a step beside all sequences.
    assert whole.max_batched_tokens >= whole.prompt + whole.max_num_sequences > chunks.max_batched_tokens
    assert len({dataclasses.replace(arms[f"blocks_of_{size}"], block=1) for size in BLOCKS}) == 1


@pytest.mark.parametrize("arm", ["continuous_saturated", "prompts_whole"])
def test_the_gpu_configuration_is_built_and_stepped(arm: str, tmp_path: Path) -> None:
    config: ServingConfig = EXPERIMENT.scales["gpu"].arms[arm]
    with torch.device("meta"):
        assert len(Llama(model_config(config)).blocks) == config.layers
    small = dataclasses.replace(config, width=64, layers=1, requests=3, max_num_sequences=2, longest=4, checked=1)
    metrics = trials.trial(small, context_in(tmp_path, small))
    assert metrics.get("changed", 0) == 0


class TestLoads:
    def test_arms_of_a_seed_get_the_same_requests(self) -> None:
        config = dataclasses.replace(SMOKE["static_saturated"], requests=50)
        slow, fast = (arrivals(config, random.Random(3), rate) for rate in (1.0, 4.0))
        for one, other in zip(slow, fast, strict=True):
            assert (one.prompt, one.new_tokens) == (other.prompt, other.new_tokens)
            assert one.at == pytest.approx(4 * other.at)
        assert slow[0].at == 0 and 20 < slow[-1].at < 100

    def test_a_share_of_prompts_is_long(self) -> None:
        config = dataclasses.replace(SMOKE["prompts_whole"], requests=400, prompt=64, long_prompts=0.1)
        lengths = [len(arrival.prompt) for arrival in arrivals(config, random.Random(0), 1.0)]
        assert 20 < lengths.count(64) < 60 and all(length == 64 or length <= 8 for length in lengths)

    def test_lengths_have_the_median_that_is_asked_for(self) -> None:
        draw = random.Random(0)
        lengths = sorted(heavy_tailed(draw, 16.0, 1.3, 256) for _ in range(4001))
        assert 15 <= lengths[2000] <= 17 and lengths[-1] == 256 and lengths[0] == 2
        assert sum(lengths) / 4001 > 2 * lengths[2000]

    def test_time_passes_only_while_something_is_computed(self, tmp_path: Path) -> None:
        config = SMOKE["continuous_saturated"]
        engine = Engine(random_model(config, context_in(tmp_path, config)), limits=Limits(2, 8))
        told = play(engine, [Arrival(1000.0, [1, 2, 3], 4), Arrival(0.0, [4], 2), Arrival(0.0, [4, 5], 1)])
        assert [len(own.tokens) for own in told] == [2, 1, 4] and [own.arrival.at for own in told] == [0.0, 0.0, 1000.0]
        assert all(0 < own.times[0] - own.arrival.at < 100 for own in told)
        assert all(own.times == sorted(own.times) for own in told)
        measured = service_times(told)
        assert measured["tokens_a_second"] == pytest.approx(7 / told[2].times[-1])
        assert measured["whole_p99"] == max((own.times[-1] - own.arrival.at) / len(own.times) for own in told)
        assert measured["pause_p50"] <= measured["pause_p99"]

    def test_a_static_batch_makes_others_wait(self, tmp_path: Path) -> None:
        """In passes, which no machine's load can change."""
        config = SMOKE["continuous_saturated"]
        passes = {}
        for scheduler in (None, StaticScheduler):
            options: dict[str, Any] = {} if scheduler is None else {"scheduler": scheduler}
            engine = Engine(random_model(config, context_in(tmp_path, config)), limits=Limits(2, 8), **options)
            lengths = [2, 20, 2, 2, 2, 20, 2, 2]
            play(engine, [Arrival(0.0, [1], length) for length in lengths])
            passes[scheduler] = engine.statistics.steps
        assert passes[None] < 30 < passes[StaticScheduler]

    @pytest.mark.parametrize("tokens", [5, 8, 200])
    def test_a_full_pass_is_full(self, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long it takes until the last prompt is read, no text has ended by then."""
        config = SMOKE["continuous_saturated"]
        engine = Engine(random_model(config, context_in(tmp_path, config)), limits=Limits(4, tokens), sharing=False)
        taken: list[int] = []
        step = engine.step

        def counted() -> bool:
            written = engine.statistics.generated_tokens
            busy = step()
            taken.append(engine.statistics.generated_tokens - written)
            return busy

        monkeypatch.setattr(engine, "step", counted)
        assert full_step_seconds(engine, 40, 4, config.vocabulary) > 0
        # The last pass lets the cancelled texts go.
        assert taken[-31:-1] == [4] * 30 and not engine.scheduler.running

    def test_passes_that_are_not_full_are_refused(self, tmp_path: Path) -> None:
        config = SMOKE["continuous_saturated"]
        model = random_model(config, context_in(tmp_path, config))
        engine = Engine(model, cache_tokens=256, limits=Limits(4, 8), sharing=False)
        with pytest.raises(RuntimeError, match="of 4 sequences were in the steps"):
            full_step_seconds(engine, 40, 4, config.vocabulary)


MEMORY: dict[str, Any] = {"requests": 60, "context": 256, "contexts": 4, "means": (20.0, 40.0), "spread": 1.0}


class TestSteps:
    def test_a_request_alone_waits_for_its_prompt(self) -> None:
        for prompt, expected in ((5, 1), (8, 1), (9, 2), (30, 4)):
            waits = first_token_steps(self.scheduler(Scheduler), [Arrival(3.5, [0] * prompt, 4)])
            assert waits == [expected], prompt

    def test_a_static_batch_is_waited_for(self) -> None:
        """As many steps as the longest text of the batch takes, or until one of two places is free."""
        load = [Arrival(0.0, [0], 20), Arrival(0.0, [0], 3), Arrival(0.0, [0], 2)]
        assert first_token_steps(self.scheduler(StaticScheduler), load) == [1, 1, 21]
        assert first_token_steps(self.scheduler(Scheduler), load) == [1, 1, 4]

    def test_steps_are_those_of_the_engine(self, tmp_path: Path) -> None:
        config = SMOKE["continuous_saturated"]
        load = [dataclasses.replace(own, at=0.0) for own in arrivals(config, random.Random(5), 1.0)]
        for kind in (Scheduler, StaticScheduler):
            model = random_model(config, context_in(tmp_path, config))
            engine = Engine(model, limits=Limits(2, 8), sharing=False, block_size=4, scheduler=kind)
            steps: dict[int, int] = {}
            told = [Told(own) for own in load]
            for own in told:
                engine.submit(Request(own.arrival.prompt, own.arrival.new_tokens, own, Sampling.greedy()))
            while engine.step():
                steps |= {
                    place: engine.statistics.steps
                    for place, own in enumerate(told)
                    if own.tokens and place not in steps
                }
            assert sorted(first_token_steps(self.scheduler(kind), load)) == sorted(steps.values())

    def scheduler(self, kind: type[Scheduler]) -> Scheduler:
        return kind(BlockPool(64, 4, sharing=False), Limits(2, 8, max_queue=50))


class TestMemory:
    def test_a_whole_context_is_reserved_for_each_text(self) -> None:
        counted = fill_memory(seed=0, block=256, **MEMORY)
        assert counted["sequences_at_once"] == 4 and counted["preempted"] == 0
        # What a text has by then is half of it on average, and more for long ones, which stay longer.
        assert 0.6 < counted["waste"] < 0.95

    def test_blocks_of_one_token_waste_nothing(self) -> None:
        assert fill_memory(seed=0, block=1, **MEMORY)["waste"] == 0

    def test_smaller_blocks_waste_less_and_hold_more(self) -> None:
        counted = [fill_memory(seed=1, block=block, **MEMORY) for block in (4, 16, 64, 256)]
        wastes, texts = ([one[name] for one in counted] for name in ("waste", "sequences_at_once"))
        assert wastes == sorted(wastes) and texts == sorted(texts, reverse=True)
        assert CONTEXT % max(BLOCKS) == 0


class TestSpeculation:
    def test_chances_are_the_models(self) -> None:
        torch.manual_seed(0)
        model = reader(32, 1, 16).eval()
        found = chances(model, [65, 66])
        assert len(found) == 27 and sum(found.values()) == pytest.approx(1, abs=1e-5)
        text = next(iter(found))
        logits = model(torch.tensor([[65, 66, *text]])).detach()[0]
        one_by_one = [float(probabilities(logits[1 + place][None], FEW)[0, token]) for place, token in enumerate(text)]
        assert found[text] == pytest.approx(math.prod(one_by_one), rel=1e-4)

    def test_chi_square_counts_rare_texts_together(self) -> None:
        chance = {(0,): 0.5, (1,): 0.492, (2,): 0.004, (3,): 0.004}
        assert chi_square({(0,): 500, (1,): 492, (2,): 8}, chance, 1000) == 1
        assert chi_square({(0,): 500, (1,): 400, (9,): 100}, chance, 1000) < 1e-6
        assert chi_square({(0,): 300, (1,): 700}, chance, 1000) < 1e-6
        # Too few for anything to be said.
        assert chi_square({(0,): 3}, {(0,): 1.0}, 3) == 1
        # A rest that is too small to stand alone.
        assert chi_square({(0,): 101, (1,): 99}, {(0,): 0.5, (1,): 0.49, (2,): 0.01}, 200) > 0.5
