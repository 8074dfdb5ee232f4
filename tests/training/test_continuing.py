"""A training that is continued: its last checkpoint stands, and the settings that apply are those it is given now."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.training import (
    Checkpoint,
    CheckpointError,
    Constant,
    Cosine,
    Linear,
    Loss,
    TrainingConfig,
    train,
)


def model(frozen: int | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    if frozen is not None:
        made[frozen].requires_grad_(False)
    return made


def batches(step: int) -> Tensor:
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def loss(module: nn.Module, batch: Tensor) -> Loss:
    return Loss(F.mse_loss(module(batch), batch.roll(1, 1), reduction="sum"), batch.numel())


def by_hand(*parts: tuple[int, TrainingConfig]) -> nn.Module:
    """Train with one optimiser and these settings, each up to its step."""
    module, done = model(), 0
    weights = list(module.parameters())
    optimizer = torch.optim.AdamW([{"params": weights[0::2]}, {"params": weights[1::2], "weight_decay": 0.0}])
    for end, config in parts:
        for step in range(done, end):
            for group, decay in zip(optimizer.param_groups, (config.weight_decay, 0.0), strict=True):
                rate = config.learning_rate * config.schedule(step, config.steps)
                group |= {"lr": rate, "betas": config.betas, "weight_decay": decay}
            optimizer.zero_grad()
            total, count = loss(module, batches(step))
            (total / count).backward()
            if config.clip is not None:
                nn.utils.clip_grad_norm_(weights, config.clip)
            optimizer.step()
        done = end
    return module


FIRST = TrainingConfig(5, 1e-2, schedule=Cosine(warmup=2), weight_decay=0.3, betas=(0.8, 0.9), clip=0.1)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"weight_decay": 0.0},
        {"betas": (0.5, 0.99)},
        {"learning_rate": 3e-2},
        {"schedule": Linear(final=0.2)},
        {"schedule": Constant()},
        {"clip": None},
        {"clip": 0.02},
        {"accumulate": 3},
        {"steps": 20},
        {"weight_decay": 0.9, "betas": (0.0, 0.0), "learning_rate": 1e-3, "clip": 5.0},
    ],
    ids=str,
)
def test_new_settings_apply(tmp_path: Path, changed: dict[str, Any]):
    settings = {name: getattr(FIRST, name) for name in ("learning_rate", "schedule", "weight_decay", "betas", "clip")}
    then = TrainingConfig(**({"steps": 9} | settings | changed))
    kept, module = Checkpoint(tmp_path / "state"), model()
    train(module, batches, loss, FIRST, checkpoint=kept)
    module = model()
    train(module, batches, loss, then, checkpoint=kept)
    expected = by_hand((5, FIRST), (then.steps, then))
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_stands_at_the_end_whatever_the_time_between(tmp_path: Path):
    kept = Checkpoint(tmp_path / "state", every_seconds=1e9)
    trained = model()
    result = train(trained, batches, loss, FIRST, checkpoint=kept)
    again = train(module := model(), lambda step: pytest.fail("no step is left"), loss, FIRST, checkpoint=kept)  # pyright: ignore
    assert torch.equal(again.losses, result.losses) and again.unused == ()
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), trained.parameters(), strict=True))


def test_it_is_saved_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved = []
    save = Checkpoint.save

    def noting(self: Checkpoint, module: Any, optimizer: Any, progress: Any) -> None:
        saved.append(progress["step"])
        save(self, module, optimizer, progress)

    monkeypatch.setattr(Checkpoint, "save", noting)
    train(model(), batches, loss, FIRST, checkpoint=Checkpoint(tmp_path / "state", every_seconds=0))
    assert saved == [1, 2, 3, 4, 5]


class TestRefused:
    def test_other_weights(self, tmp_path: Path):
        """As many as before, so that only their names tell."""
        kept = Checkpoint(tmp_path / "state")
        train(model(frozen=0), batches, loss, FIRST, checkpoint=kept)
        with pytest.raises(
            CheckpointError, match=r"other weights were trained than are now: 0\.bias, 0\.weight, 2\.bias"
        ):
            train(model(frozen=2), batches, loss, TrainingConfig(9, 1e-2), checkpoint=kept)

    def test_another_optimizer(self, tmp_path: Path):
        kept, module = Checkpoint(tmp_path / "state"), model()
        kept.save(module, torch.optim.Adam(module.parameters()), {"step": 1})
        before = [p.clone() for p in module.parameters()]
        with pytest.raises(CheckpointError, match="of the optimiser Adam, and this is AdamW"):
            train(module, batches, loss, FIRST, checkpoint=kept)
        assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))

    @pytest.mark.parametrize("seconds", [-1.0, float("nan")])
    def test_no_time_between_checkpoints(self, tmp_path: Path, seconds: float):
        with pytest.raises(ValueError, match=f"every_seconds is {seconds}"):
            Checkpoint(tmp_path / "state", every_seconds=seconds)


def test_an_optimizer_keeps_its_own_settings(tmp_path: Path):
    module = model()
    kept, first = Checkpoint(tmp_path / "state"), torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
    module(batches(0)).sum().backward()
    first.step()
    kept.save(module, first, {})
    second = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.1, weight_decay=0.2)
    kept.load(module, second)
    (group,) = second.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.1, 0.2)
    parameter = next(module.parameters())
    assert torch.equal(second.state[parameter]["momentum_buffer"], first.state[parameter]["momentum_buffer"])
