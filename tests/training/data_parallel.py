"""What the processes of a data-parallel training run: `python -m torch.distributed.run … data_parallel.py FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from allyouneed.training import Checkpoint, Loss, TrainingConfig, TrainingResult, train

IGNORED = -1
# Adam does not see the scale of gradients. A clip that some steps meet and others do not makes it count.
CLIP = 0.85
CONFIGS = {
    "plain": TrainingConfig(6, 1e-2, clip=CLIP),
    "accumulated": TrainingConfig(6, 1e-2, clip=CLIP, accumulate=2),
    "not clipped": TrainingConfig(6, 1e-2, clip=None),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Give seven rows, which two processes cannot share evenly; some have many targets, some none."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(11, (7, 5), generator=generator)
    targets = torch.randint(11, (7, 5), generator=generator)
    counts = torch.tensor([5, 5, 1, 0, 2, 0, 0])[:, None]
    return tokens, targets.where(torch.arange(5) < counts, IGNORED)


def loss(module: nn.Module, part: tuple[Tensor, Tensor]) -> Loss:
    tokens, targets = part
    logits = module(tokens).flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=IGNORED)
    return Loss(total, (targets != IGNORED).sum())


def results(fabric: Fabric, folder: Path) -> dict[str, Tensor]:
    """Train with each configuration, and once from a checkpoint half-way; give what was seen."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, result: TrainingResult) -> None:
        found[f"{name}: losses"] = result.losses
        for key, value in module.state_dict().items():
            found[f"{name}: {key}"] = value.detach().clone()

    for name, config in CONFIGS.items():
        module = model()
        keep(name, module, train(module, batch, loss, config, fabric=fabric))
    module = model().bfloat16()
    keep("in 16 bits", module, train(module, batch, loss, CONFIGS["accumulated"], fabric=fabric))
    checkpoint = Checkpoint(folder / f"of-{fabric.world_size}.safetensors", every_seconds=0.0)
    train(model(), batch, loss, TrainingConfig(3, 1e-2, clip=CLIP), fabric=fabric, checkpoint=checkpoint)
    fabric.barrier()
    module, logged = model(), []
    config = CONFIGS["plain"]
    log = lambda step, **_: logged.append(step)  # noqa: E731
    keep("continued", module, train(module, batch, loss, config, fabric=fabric, checkpoint=checkpoint, log=log))
    found["logged"] = torch.tensor(logged)
    found["drawn"] = torch.rand(4)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    parallel = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    parallel.launch()
    save_file(results(parallel, where), where / f"process-{parallel.global_rank}.safetensors")
    too_few = (torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64))
    try:
        train(model(), lambda _: too_few, loss, TrainingConfig(1, 1e-2), fabric=parallel)
    except ValueError as error:
        (where / f"refused-{parallel.global_rank}.txt").write_text(str(error))
