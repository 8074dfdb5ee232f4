"""The experiment of the Vision Transformer: pictures, the ResNet it is compared with, and every line at smoke scale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from allyouneed.data.fashion_mnist import CLOTHES
from allyouneed.evidence import Context, Record, Task, TrialResult
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import run_trial
from allyouneed.papers.vit import (
    ImageClassifier,
    LearnedPositions,
    RelativePositions,
    ResNet,
    ResNetStem,
    Vit,
    VitConfig,
    attention_weights,
    class_rollout,
    grid_similarities,
    rollout,
)
from allyouneed.papers.vit.experiment import CLAIMS, EXPERIMENT, IMAGES, TUNED
from allyouneed.papers.vit.figure import SIZES
from allyouneed.papers.vit.resnet import ResidualBlock, StandardisedConv2d
from allyouneed.papers.vit.trials import VisionConfig, build_resnet, build_vit, chosen, flops_per_image, trial

pytestmark = pytest.mark.usefixtures("standins")

SMOKE = EXPERIMENT.scales["smoke"].arms


def tried(arm: str, config: VisionConfig, folder: Path, seed: int = 0) -> TrialResult:
    record = run_trial(Task(trial, arm, seed, config, folder / arm))
    assert record.result is not None, record.error
    return record.result


def test_smoke_scale_runs_judges_and_draws(tmp_path: Path):
    trials = [tried(arm, config, tmp_path) for arm, config in SMOKE.items()]
    for claim in CLAIMS:
        finding = claim.judge(trials, [0])
        assert not finding.missing
        assert finding.verdict == "inconclusive"
    text = svg(EXPERIMENT.figure(trials))
    for label in ("ViT", "ResNet, pre-trained on clothes", "relative", "rows apart", "columns apart"):
        assert label in text
    exhibits = tmp_path / "pretrained/exhibits"
    assert {path.name for path in exhibits.iterdir()} == {"positions.svg", "rollout.svg"}
    shown = (exhibits / "rollout.svg").read_text(encoding="utf-8")
    assert sum(shown.count(f"“{name}”") for name in CLOTHES) == len(CLOTHES)
    assert not (tmp_path / "few/exhibits").exists()
    # What the checkpoints held is in the result.
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("scale", ["laptop", "gpu"])
def test_all_but_relative_positions_cost_the_same_compute(scale: str):
    scales = {"laptop": EXPERIMENT.scales["laptop"], "gpu": EXPERIMENT.scales["gpu"]}
    arms = scales[scale].arms
    costs = {arm: flops_per_image(build_vit(arms[arm])) for arm in ("all", "none", "axes", "hybrid")}
    costs["resnet"] = flops_per_image(build_resnet(arms["all"]))
    for arm, cost in costs.items():
        assert cost == pytest.approx(costs["all"], rel=0.02), arm
    # As many images of 64 or 256 are seen in every arm.
    assert len({(config.steps, config.batch) for config in arms.values()}) == 1


def test_arms_differ_in_what_they_are_named_for_and_what_was_tuned():
    for scale in EXPERIMENT.scales.values():
        arms = {arm: replace(config, vit_rate=1.0, resnet_rate=1.0) for arm, config in scale.arms.items()}
        assert len({replace(arms[arm], images=None) for arm in SIZES}) == 1
        assert replace(arms["pretrained"], clothes_steps=0) == arms["few"]
        assert replace(arms["none"], positions="learned", compared=True) == arms["all"]
        assert replace(arms["axes"], positions="relative") == arms["relative"]
    laptop = EXPERIMENT.scales["laptop"].arms
    assert {arm: laptop[arm].images or 50_000 for arm in SIZES} == dict(IMAGES)
    assert set(TUNED) <= set(laptop)


def test_counted_compute_is_that_of_the_products():
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10, bias=False))
    # Forward, and backward to the weights; none to the image.
    assert flops_per_image(linear) == 2 * 2 * 784 * 10
    assert all(parameter.grad is None for parameter in linear.parameters())


@pytest.mark.parametrize("arm", ["few", "pretrained", "relative", "hybrid"])
def test_gpu_configurations_take_a_step(arm: str, tmp_path: Path):
    config = EXPERIMENT.scales["gpu"].arms[arm]
    shrunk = replace(config, batch=2, steps=1, clothes_steps=min(1, config.clothes_steps), images=10, tested=10)
    assert 0 <= tried(arm, shrunk, tmp_path).metrics["vit_accuracy"] <= 100


def test_an_interrupted_trial_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = SMOKE["pretrained"]
    whole = tried("pretrained", config, tmp_path / "whole")
    task = Task(trial, "pretrained", 0, config, tmp_path / "broken", checkpoint_seconds=0.0)
    log = Context.log
    # The last step but one: of the ResNet on digits.
    late = 2 * (config.steps + config.clothes_steps) - 1

    def fail(self: Context, step: int, steps: int, **values: float) -> None:
        log(self, step, steps, **values)
        if step == late:
            raise KeyError("the lights went out")

    with monkeypatch.context() as patched:
        patched.setattr(Context, "log", fail)
        assert isinstance(broken := run_trial(task), Record) and "lights" in broken.error
    resumed = run_trial(task)
    assert resumed.result is not None and resumed.result.metrics == whole.metrics
    steps = [line for line in (task.folder / "curve.jsonl").read_text().splitlines() if f'"step": {late - 2},' in line]
    assert len(steps) == 1, "what was trained before the checkpoint was trained again"


def test_seeds_differ_and_repeat(tmp_path: Path):
    first = tried("few", SMOKE["few"], tmp_path / "a").metrics
    assert first == tried("few", SMOKE["few"], tmp_path / "b").metrics
    assert first != tried("few", SMOKE["few"], tmp_path / "c", seed=1).metrics


def test_images_are_drawn_without_replacement():
    labelled = torch.arange(40).view(40, 1, 1).expand(40, 28, 28).to(torch.uint8), torch.arange(40)
    images, labels = chosen(labelled, 30, seed=0)
    assert len(labels.unique()) == 30
    assert torch.equal(images[:, 0, 0].long(), labels)
    assert not torch.equal(chosen(labelled, 30, seed=1)[1], labels)
    with pytest.raises(ValueError, match="only 40"):
        chosen(labelled, 41, seed=0)


def test_standardised_weights_have_mean_zero_and_keep_variance():
    torch.manual_seed(0)
    layer = StandardisedConv2d(3, 5, 3, 1, 1, bias=False).double()
    layer.weight.data = 7 * layer.weight.data + 3
    maps = torch.randn(400, 3, 8, 8, dtype=torch.float64)
    found = layer(maps)
    assert found[..., 1:-1, 1:-1].var().item() == pytest.approx(1, rel=0.1)
    layer.weight.data = 0.1 * layer.weight.data - 1
    torch.testing.assert_close(layer(maps), found, atol=1e-5, rtol=1e-5)


def test_a_residual_block_is_the_identity_beside_its_convolutions():
    block = ResidualBlock(8, 8, 1, 4)
    assert block.shortcut is None
    torch.nn.init.zeros_(block.convolutions[1].weight)  # pyright: ignore[reportArgumentType]
    maps = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(maps), maps)
    assert ResidualBlock(8, 12, 2, 4)(maps).shape == (2, 12, 3, 3)


def test_a_resnet_carried_to_another_task_keeps_its_convolutions():
    model = ResNet(ResNetStem(1, (4, 8)), 10)
    tuned = model.for_task(3)
    assert tuned.stem is model.stem
    assert torch.equal(tuned(torch.randn(2, 1, 28, 28)), torch.zeros(2, 3))


def model_of(positions: RelativePositions | None = None) -> Vit:
    torch.manual_seed(0)
    size = VitConfig(image=12, patch=4, channels=1, width=16, layers=3, heads=2, hidden=24)
    model = Vit(size, positions=positions).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("relative", [False, True])
def test_attention_weights_are_those_that_the_model_mixes_with(relative: bool):
    model = model_of(RelativePositions((3, 3), 8) if relative else None)
    images = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    weights = attention_weights(model, images)
    assert weights.shape == (3, 2, 2, 10, 10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 2, 10, dtype=torch.float64))
    # By hand, in the first layer.
    attention: Any = model.blocks[0].attention
    hidden = attention.norm(next(iter(model.layers(images))))
    query, key = (F.linear(hidden, one.weight, one.bias) for one in (attention.sublayer.query, attention.sublayer.key))
    query, key = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in (query, key))
    logits = query @ key.mT / 8**0.5
    if relative:
        table: Any = model.positions.table
        places = torch.arange(10)
        logits = logits + torch.einsum("bhqd,qkd->bhqk", query, table[places[:, None] - places + 9]) / 8**0.5
    torch.testing.assert_close(weights[0], logits.softmax(-1))
    # And the model is as it was.
    assert model.training
    torch.testing.assert_close(attention_weights(model, images), weights)


def test_rollout_multiplies_layers_from_the_first_to_the_last():
    weights = torch.rand(3, 2, 4, 5, 5, dtype=torch.float64).softmax(-1)
    found = rollout(weights)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    first, second, third = ((layer.mean(1) + torch.eye(5)) / 2 for layer in weights)
    torch.testing.assert_close(found, third @ second @ first)
    # A last layer in which all look at token 3 hands on half of what that token gathered.
    weights[2] = F.one_hot(torch.tensor(3), 5).double()
    torch.testing.assert_close(rollout(weights)[:, 0], ((second @ first)[:, 0] + (second @ first)[:, 3]) / 2)


def test_class_rollout_is_a_share_of_each_patch():
    maps = class_rollout(model_of(), torch.randn(2, 1, 16, 20, dtype=torch.float64))
    assert maps.shape == (2, 4, 5)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2, dtype=torch.float64))


def grid_of(vectors: torch.Tensor) -> dict[str, float]:
    """Measure positions of a grid of 4 × 4 with given vectors."""
    positions = LearnedPositions((4, 4), vectors.shape[-1])
    positions.table.data[0, 1:] = vectors
    return grid_similarities(positions)


def test_similarity_finds_a_grid_where_there_is_one():
    rows, columns = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    # Vectors of a row beside those of a column: alike where one of the two is the same, as in AxisPositions.
    found = grid_of(torch.cat((F.one_hot(rows, 4), F.one_hot(columns, 4)), 1).float())
    assert found["in_line"] == pytest.approx(0.5)
    assert found["nearness"] > 0.1
    assert found["similarity_0_0"] == pytest.approx(1)
    assert found["similarity_0_2"] == found["similarity_3_0"] == pytest.approx(0.5)
    assert found["similarity_1_2"] == pytest.approx(0)
    # Vectors that know only where they are, not the axes.
    near = torch.exp(-0.5 * ((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2))
    assert grid_of(near)["nearness"] > 0.6
    # Those that are further apart are more alike.
    assert grid_of(torch.eye(16) - near / 10)["nearness"] < 0


def test_similarity_finds_none_where_there_is_none():
    torch.manual_seed(0)
    draws = [grid_of(torch.randn(16, 64)) for _ in range(50)]
    for metric in ("in_line", "nearness"):
        assert sum(draw[metric] for draw in draws) / 50 == pytest.approx(0, abs=0.04)


def test_models_are_built_from_their_seed():
    torch.manual_seed(3)
    first = build_vit(SMOKE["all"])
    torch.manual_seed(3)
    again = build_vit(SMOKE["all"])
    assert isinstance(first, ImageClassifier)
    for ours, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, other)
