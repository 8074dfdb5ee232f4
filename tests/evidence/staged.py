"""A shared stage that trains, and a trial that stands on it: a module of its own, for processes to import."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allyouneed.evidence import Context, Stage, Task
from allyouneed.evidence.stages import prepare
from allyouneed.training import Loss, TrainingConfig, train

PAUSE = "STAGED_PAUSE"
"""Names the variable with the seconds of rest after each step, which changes nothing in the result."""


@dataclass(frozen=True)
class CostlyConfig:
    size: int = 2
    steps: int = 5
    pause: float = 0.0


def make_costly(config: CostlyConfig, context: Context) -> None:
    with (context.folder.parent / "begun.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if config.size < 0:
        raise ArithmeticError(f"size {config.size} is too little")
    time.sleep(config.pause)
    context.checkpoint.every_seconds = 0.0
    model = nn.Sequential(nn.Linear(4, config.size), nn.Dropout(0.5), nn.Linear(config.size, 1))

    def loss(model: nn.Module, batch: Tensor) -> Loss:
        return Loss(model(batch + torch.rand_like(batch)).square().sum(), len(batch))

    def log(step: int, steps: int, **values: float) -> None:
        context.log(step, steps, **values)
        time.sleep(float(os.environ.get(PAUSE, "0")))

    train(
        model,
        lambda step: torch.rand(3, 4, generator=torch.Generator().manual_seed(step)),
        loss,
        TrainingConfig(config.steps, 0.01),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )
    save_file(dict(model.state_dict()), context.folder / "weights.safetensors")


COSTLY = Stage("costly", make_costly)


def read(folder: Path) -> Tensor:
    return torch.cat([value.flatten() for _, value in sorted(load_file(folder / "weights.safetensors").items())])


@dataclass(frozen=True)
class TrialConfig:
    fails: bool = False
    pause: float = 0.0


def trial(config: TrialConfig, context: Context) -> Mapping[str, float]:
    before = float(torch.rand(()))
    folder = context.stage(COSTLY, CostlyConfig(size=-1 if config.fails else 2, pause=config.pause))
    return {"before": before, "after": float(torch.rand(())), "weights": float(read(folder).sum())}


if __name__ == "__main__":
    root, steps = Path(sys.argv[1]), int(sys.argv[2])
    import staged

    one = Task(staged.trial, "one", 0, staged.TrialConfig(), root / "room" / "one", stages=root / "stages")
    prepare(staged.COSTLY, staged.CostlyConfig(steps=steps), 0, one)
