from pathlib import Path

import pytest
import torch
from torch import nn

from allyouneed.training import CheckpointError, Loss, Snapshots, TrainingConfig, average, train


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    built = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False))
    built[2].weight = nn.Parameter(built[0].weight.T.contiguous())
    return built


def test_the_average_is_the_mean_of_each_weight():
    states = [model(seed).state_dict() for seed in range(5)]
    states[-1]["1.num_batches_tracked"] += 7
    averaged = average(states)
    assert averaged.keys() == states[0].keys()
    expected = torch.stack([state["0.weight"] for state in states]).double().mean(0).float()
    assert torch.equal(averaged["0.weight"], expected)
    assert averaged["1.num_batches_tracked"] == 7
    assert all(averaged[name].dtype == value.dtype for name, value in states[0].items())


def test_the_average_of_16_bits_is_not_computed_in_16_bits():
    states = [{"weight": torch.tensor([value], dtype=torch.bfloat16)} for value in (256.0, 1.0, 1.0, 1.0, 1.0)]
    assert average(states)["weight"] == torch.tensor(52.0, dtype=torch.bfloat16)


def test_snapshots_of_a_training_are_the_weights_at_those_steps(tmp_path: Path):
    network = nn.Linear(3, 1)
    snapshots = Snapshots(tmp_path / "snapshots", steps=(2, 5, 5))
    seen = {}

    def loss(module: nn.Module, batch: torch.Tensor) -> Loss:
        return Loss(module(batch).square().sum(), len(batch))

    def log(step: int, **_: float) -> None:
        seen[step] = network.weight.detach().clone()
        snapshots.take(network, step)

    train(network, lambda step: torch.ones(2, 3) * (step + 1), loss, TrainingConfig(6, 0.1), log=log)
    for step in (2, 5):
        assert torch.equal(snapshots.load(step)["weight"], seen[step])
    torch.testing.assert_close(snapshots.load(2, 5)["weight"], (seen[2] + seen[5]) / 2)
    assert sorted(path.name for path in snapshots.folder.iterdir()) == [
        "step-0000002.safetensors",
        "step-0000005.safetensors",
    ]
    snapshots.remove()
    assert not snapshots.folder.exists()


def test_tied_weights_are_kept(tmp_path: Path):
    tied = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    snapshots = Snapshots(tmp_path, steps=[1])
    snapshots.take(tied, 1)
    state = snapshots.load(1)
    assert torch.equal(state["head.weight"], state["embedding.weight"])
    tied.load_state_dict(state)
    assert tied["head"].weight is tied["embedding"].weight


def test_a_step_taken_again_is_written_again(tmp_path: Path):
    snapshots = Snapshots(tmp_path, steps=[1])
    for seed in (0, 1):
        snapshots.take(model(seed), 1)
    assert torch.equal(snapshots.load(1)["0.weight"], model(1)[0].weight)


class TestRefused:
    def test_no_states(self):
        with pytest.raises(ValueError, match="nothing to average"):
            average([])

    def test_states_of_different_models(self):
        with pytest.raises(ValueError, match="state 1 is of another model than state 0: they differ in bias, weight"):
            average([nn.Linear(2, 3).state_dict(), nn.Linear(3, 2).state_dict()])

    def test_a_snapshot_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(CheckpointError, match=r"step-0000003\.safetensors is not a readable snapshot"):
            Snapshots(tmp_path, steps=[3]).load(3)

    def test_a_damaged_snapshot(self, tmp_path: Path):
        snapshots = Snapshots(tmp_path, steps=[3])
        snapshots.take(model(), 3)
        path = snapshots.path(3)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(CheckpointError, match="not a readable snapshot"):
            snapshots.load(3)

    def test_a_place_that_cannot_be_written(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="could not write the snapshot"):
            Snapshots(tmp_path / "file" / "folder", steps=[1]).take(model(), 1)
