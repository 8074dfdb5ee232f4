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
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import SCALES, Experiment, Run, run
from allyouneed.evidence.figures import svg
from allyouneed.nn import linear_cross_entropy
from allyouneed.papers.moe import HierarchicalGate, balancing_loss
from allyouneed.papers.moe_explained import router_loss, upcycle
from allyouneed.training import Loss, TrainingConfig, train

ROOMS = ("moe", "moe_explained")
PARTS = {room: importlib.import_module(f"allyouneed.papers.{room}.experiment") for room in ROOMS}
TRIALS: dict[str, Any] = {room: importlib.import_module(f"allyouneed.papers.{room}.trials") for room in ROOMS}
EXPERIMENTS: dict[str, Experiment] = {room: PARTS[room].EXPERIMENT for room in ROOMS}
# The other arms differ from these in a number that changes no shape.
GPU_ARMS = [
    *(("moe", arm) for arm in ("moe_4", "moe_32", "moe_32_unbalanced", "moe_256", "dense")),
    *(("moe_explained", arm) for arm in ("dense", "switch", "switch_z", "scratch", "upcycled")),
]


@pytest.fixture(scope="module", params=ROOMS)
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENTS[request.param], "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def test_every_claim_finds_its_metric(smoke: Run) -> None:
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in smoke.experiment.claims]
    assert not any(finding.missing for finding in findings.values())
    # One seed is too few for a verdict.
    assert {finding.verdict for finding in findings.values()} == {"inconclusive"}
    for result in smoke.trials:
        assert all(math.isfinite(value) for value in {**result.metrics, **result.costs}.values())
        loss = result.metrics.get("loss", math.log(result.metrics.get("perplexity", 256)))
        assert 1 < loss < math.log(256) + 1
        assert result.costs["step_seconds"] > 0


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
            *(f"capacity factor {factor}" for factor in ("1", "1.25", "2")),
            *("new mixture", "upcycled"),
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
    factors = [arms[f"capacity_{name}"] for name in ("1", "1.25", "2")]
    assert {dataclasses.replace(config, capacity_factor=1.25) for config in factors} == {factors[1]}
    assert [config.capacity_factor for config in factors] == [1.0, 1.25, 2.0]
    assert arms["dense"].steps == switch.steps
    # Upcycling is given as many further steps as the mixture that begins anew has in all.
    assert arms["upcycled"].steps == arms["scratch"].steps
    assert arms["upcycled"].dense_rate == arms["dense"].learning_rate


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
