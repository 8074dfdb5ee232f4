"""The experiments of both rooms about experts: every scale can run, and arms are compared alike."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import SCALES, Context, Exact, Experiment, Run, Scale, Task, run
from allyouneed.evidence.figures import svg
from allyouneed.nn import linear_cross_entropy
from allyouneed.papers.moe import HierarchicalGate, balancing_loss
from allyouneed.papers.moe_explained import router_loss, upcycle
from allyouneed.training import Loss, TrainingConfig, next_token_loss, train

ROOMS = ("moe", "moe_explained")
PARTS = {room: importlib.import_module(f"allyouneed.papers.{room}.experiment") for room in ROOMS}
TRIALS: dict[str, Any] = {room: importlib.import_module(f"allyouneed.papers.{room}.trials") for room in ROOMS}
EXPERIMENTS: dict[str, Experiment] = {room: PARTS[room].EXPERIMENT for room in ROOMS}
# The other arms differ from these in a number that changes no shape.
GPU_ARMS = [
    *(("moe", arm) for arm in ("moe_4", "moe_32", "moe_32_unbalanced", "moe_256", "dense")),
    *(("moe_explained", arm) for arm in ("dense", "switch", "switch_z", "scratch", "upcycled", "continued")),
]


@pytest.fixture(scope="module", params=ROOMS)
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENTS[request.param], "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def test_every_claim_finds_its_metric(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in smoke.experiment.claims]
    assert not any(finding.missing for finding in findings.values())
    for claim in smoke.experiment.claims:
        # One seed is too few for a verdict, but for an identity.
        expected = "reproduced" if isinstance(claim.test, Exact) else "inconclusive"
        assert findings[claim.id].verdict == expected, claim.id
    for result in smoke.trials:
        assert all(math.isfinite(value) for value in {**result.metrics, **result.costs}.values())
        loss = result.metrics.get("loss", math.log(result.metrics.get("perplexity", 256)))
        assert 1 < loss < math.log(256) + 1
        # A dense model that several arms begin with is trained as a stage.
        assert result.costs["step_seconds"] > 0 if "step_seconds" in result.costs else result.stages


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path) -> None:
    again = run(smoke.experiment, "smoke", folder=tmp_path, in_process=True)
    assert [result.metrics for result in again.trials] == [result.metrics for result in smoke.trials]


def test_the_figure_has_every_panel(smoke: Run) -> None:
    figure = smoke.experiment.figure(smoke.trials)
    drawn: list[Any] = figure.axes
    labels = [text.get_text() for axes in drawn for text in axes.get_legend().get_texts()]
    expected = {
        "moe": ["mixture, 4 experts a token", "one dense layer", "with both losses", "without"],
        "moe_explained": [
            *("dense", "Switch", "Switch with z-loss"),
            *("dense, continued", "upcycled", "new mixture"),
            *("factor 1", "factor 1.25"),
        ],
    }
    assert labels == expected[smoke.experiment.paper]
    assert svg(figure)


def test_the_figure_of_an_unfinished_run_is_drawn(smoke: Run) -> None:
    for arm in list(smoke.scale.arms)[::4]:
        assert svg(smoke.experiment.figure([result for result in smoke.trials if result.arm != arm]))
        assert svg(smoke.experiment.figure([result for result in smoke.trials if result.arm == arm]))


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_moe_differ_only_in_what_is_compared(scale: Any) -> None:
    arms: dict[str, Any] = dict(EXPERIMENTS["moe"].scales[scale].arms)
    told_apart = {"experts": 0, "importance": 0.0, "load": 0.0, "learning_rate": 1.0}
    assert len({dataclasses.replace(config, **told_apart) for config in arms.values()}) == 1
    numbers = {arm: config.experts for arm, config in arms.items() if arm not in ("dense", "moe_32_unbalanced")}
    assert all(arm == f"moe_{number}" for arm, number in numbers.items())
    balanced, unbalanced = arms["moe_32"], arms["moe_32_unbalanced"]
    assert unbalanced == dataclasses.replace(balanced, importance=0.0, load=0.0)
    assert balanced.importance == balanced.load == 0.1 and arms["dense"].experts == 0


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_moe_explained_differ_only_in_what_is_compared(scale: Any) -> None:
    arms: dict[str, Any] = dict(EXPERIMENTS["moe_explained"].scales[scale].arms)
    told_apart = {"kind": "switch", "capacity_factor": 1.0, "z": 0.0, "steps": 1, "learning_rate": 1.0}
    assert len({dataclasses.replace(config, **told_apart) for config in arms.values()}) == 1
    switch = arms["switch"]
    assert arms["switch_z"] == dataclasses.replace(switch, z=0.001)
    factors = [arms[f"capacity_{name}"] for name in ("1", "1.25")]
    assert dataclasses.replace(factors[0], capacity_factor=1.25) == factors[1]
    assert [config.capacity_factor for config in factors] == [1.0, 1.25]
    assert arms["dense"].steps == arms["dense"].dense_steps == switch.steps
    assert arms["dense"].learning_rate == arms["dense"].dense_rate


def test_arms_of_moe_explained_are_given_the_operations_that_are_told() -> None:
    """Within a step: of a training half as long as the dense one, or of one as long."""
    arms: dict[str, Any] = dict(EXPERIMENTS["moe_explained"].scales["laptop"].arms)
    spent = {arm: config.steps * config.operations for arm, config in arms.items()}
    for arm, share in {"continued": 0.5, "upcycled": 0.5, "scratch": 1.0}.items():
        assert spent[arm] == pytest.approx(share * spent["dense"], rel=1e-3), arm
    assert spent["dense"] < spent["switch"] < 1.02 * spent["dense"]


@pytest.mark.parametrize("arm", ["dense", "switch", "scratch"])
def test_operations_of_moe_explained_are_those_that_torch_counts(arm: str) -> None:
    config: Any = EXPERIMENTS["moe_explained"].scales["laptop"].arms[arm]
    model = TRIALS["moe_explained"].build(config).eval()
    given = torch.randint(config.vocabulary, (4, config.length))
    # The fused kernels of a CPU are not counted.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(given)
    assert counter.get_total_flops() == 2 * given.numel() * config.operations


def test_slots_cost_memory_in_proportion_to_the_capacity_factor(tmp_path: Path) -> None:
    """Which the factor of a trial's Switch decides, and not how many tokens come."""
    config: Any = EXPERIMENTS["moe_explained"].scales["laptop"].arms["switch"]
    model = TRIALS["moe_explained"].build(config)
    batch = torch.randint(config.vocabulary, (16, config.length + 1))
    context = Context(Task(TRIALS["moe_explained"].trial, "switch", 0, config, tmp_path))

    def loss(model: Any, batch: Tensor) -> Loss:
        return next_token_loss(model, batch)

    found = []
    for factor in (1.0, 2.0, 3.0):
        for layer in TRIALS["moe_explained"].sparse_layers(model):
            layer.capacity_factor = factor
        found.append(TRIALS["moe_explained"].step_bytes(model, batch, loss, context))
    first, second = found[1] - found[0], found[2] - found[1]
    assert first == pytest.approx(second, rel=0.05)
    # Of both layers what the backward pass needs at least: inputs, and inner vectors before the activation. By the time
    # of the peak those behind the activation may have been freed.
    slots = batch[:, 1:].numel()
    assert first >= 4 * config.layers * slots * (config.width + config.hidden)


class TestWhatBeginsWithTheDenseModel:
    def test_dense_training_is_shared(self, tmp_path: Path) -> None:
        """One training a seed, whose model the dense arm scores and from which the others go on."""
        experiment = EXPERIMENTS["moe_explained"]
        arms = {arm: experiment.scales["smoke"].arms[arm] for arm in ("dense", "continued", "upcycled")}
        small = dataclasses.replace(experiment, scales={**experiment.scales, "smoke": Scale(arms, 2)}, claims=())
        done = run(small, "smoke", folder=tmp_path, in_process=True)
        assert not done.failures
        stages = {stage for result in done.trials for stage in result.stages}
        assert len(stages) == 2 and all(stage.startswith("moe_explained_dense-seed") for stage in stages)
        losses = {(result.arm, result.seed): result.metrics["loss"] for result in done.trials}
        assert len(set(losses.values())) == 6

    def test_an_upcycled_model_begins_at_the_dense_models_loss(self, tmp_path: Path) -> None:
        """And so does the one that is trained on: with a rate of next to nothing both end where they began."""
        experiment = EXPERIMENTS["moe_explained"]
        arms = {arm: experiment.scales["smoke"].arms[arm] for arm in ("dense", "continued", "upcycled")}
        arms |= {arm: dataclasses.replace(arms[arm], learning_rate=1e-12) for arm in ("continued", "upcycled")}
        small = dataclasses.replace(experiment, scales={**experiment.scales, "smoke": Scale(arms, 1)}, claims=())
        losses = [result.metrics["loss"] for result in run(small, "smoke", folder=tmp_path, in_process=True).trials]
        assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_operations_are_those_that_torch_counts() -> None:
    """But for the dense layer and LSTMs of the recurrent model, which are counted by hand: layers alone are equal."""
    base = EXPERIMENTS["moe"].scales["smoke"].arms["moe_4"]
    tokens = torch.randn(64, base.width)
    counted = {}
    for name, change in {
        "dense": {"experts": 0},
        "4": {},
        "32": {"experts": 32},
        "h": {"experts": 32, "groups": 4},
    }.items():
        config = dataclasses.replace(base, **change)
        middle = TRIALS["moe"].build(config).middle
        if name == "h":
            assert isinstance(middle.gate, HierarchicalGate)
        # Segments are multiplied inside a function whose calls the counter does not see, unless no gradient is wanted.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            middle(tokens)
        # Multiply-adds; deviations of the noise, which evaluation spares, are scores once more.
        lstms = 2 * 8 * config.width**2
        counted[name] = counter.get_total_flops() // (2 * 64)
        assert counted[name] == config.operations - lstms, name
    assert counted["dense"] < counted["4"] < counted["h"] < counted["32"]


@pytest.mark.parametrize("room", ROOMS)
def test_arms_share_the_initial_weights_of_what_they_share(room: str) -> None:
    weights: list[dict[str, Tensor]] = []
    for config in EXPERIMENTS[room].scales["smoke"].arms.values():
        torch.manual_seed(3)
        weights.append(TRIALS[room].build(config).state_dict())
    shared = set.intersection(*(set(state) for state in weights))
    assert len(shared) > 8
    assert all(torch.equal(state[name], weights[0][name]) for state in weights for name in shared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 32, "groups": 5}, "32 experts cannot be divided among 5 groups"),
        ({"experts": 32, "groups": 0}, "among 0 groups"),
        ({"experts": 32, "groups": 4, "k": 3}, "k is 3: a hierarchy"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EXPERIMENTS["moe"].scales["laptop"].arms["moe_32"], **change)


@pytest.mark.parametrize(("room", "arm"), GPU_ARMS)
def test_the_gpu_configuration_is_built_and_stepped(room: str, arm: str) -> None:
    """As it is but for its batch, its windows and how many layers and experts are alike, in its own precision."""
    scale = EXPERIMENTS[room].scales["gpu"]
    config: Any = scale.arms[arm]
    if room == "moe_explained":
        config = dataclasses.replace(config, layers=1)
    elif config.experts == 256:
        config = dataclasses.replace(config, experts=64)
    model: nn.Module = TRIALS[room].build(config)
    if arm == "upcycled":
        model = upcycle(model, config.experts, 2)
    text = torch.randint(config.vocabulary, (1000,), generator=torch.Generator().manual_seed(0))
    batches = RandomWindows(text, 16, 2, seed=0)

    def loss(model: Any, batch: Tensor) -> Loss:
        hidden = model.hidden(batch[:, :-1])
        total = linear_cross_entropy(hidden, model.output_weight, batch[:, 1:])
        extra = balancing_loss(model) if room == "moe" else router_loss(model, config.balance, config.z)
        return Loss(total + batch[:, 1:].numel() * extra, batch[:, 1:].numel())

    fabric = Fabric(accelerator="cpu", devices=1, precision=scale.precision)  # pyright: ignore[reportArgumentType]
    result = train(model, batches, loss, TrainingConfig(1, config.learning_rate), fabric=fabric)
    assert 0.5 < float(result.losses[0]) / math.log(config.vocabulary) < 3
    assert all(parameter.isfinite().all() for parameter in model.parameters())
