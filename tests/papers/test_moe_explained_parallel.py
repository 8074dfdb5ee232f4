"""Two processes that hold half of the experts each compute what one process with all of them does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from allyouneed.nn import Experts, GatedExperts
from allyouneed.papers.moe_explained import ExpertParallel, SparseFeedForward, TopKRouter, local_experts

WIDTH, EXPERTS, HIDDEN = 6, 4, 5
# Unevenly shared; in the last case one process has nothing to send.
SHARES = {"uneven": (9, 4), "even": (5, 5), "alone": (7, 0)}


def layer(kind: type[Experts], factor: float | None = None) -> Any:
    torch.manual_seed(0)
    router = TopKRouter(WIDTH, EXPERTS, 2, normalised=True)
    router.weight.data *= 5
    return SparseFeedForward(router, kind(EXPERTS, WIDTH, HIDDEN, torch.tanh), factor).double()


def tokens(share: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(sum(share), WIDTH, dtype=torch.float64, generator=generator).split(share))


def computed(model: Any, given: Tensor) -> dict[str, Tensor]:
    given = given.clone().requires_grad_()
    answer = model(given)
    answer.square().sum().backward()
    assert given.grad is not None
    return {"answer": answer.detach(), "tokens": given.grad, "router": model.router.weight.grad}


def in_parallel(rank: int) -> dict[str, Tensor]:
    """Compute every case on this process's share; the router's gradient is summed as data parallelism does it."""
    found = {}
    for kind in (Experts, GatedExperts):
        for name, share in SHARES.items():
            model = layer(kind)
            local: Any = local_experts(model.experts)
            model.experts = ExpertParallel(local)
            case = computed(model, tokens(share)[rank])
            dist.all_reduce(case["router"])
            for index in range(EXPERTS // 2):
                for part, maps in local.named_children():
                    case[f"{part}.{rank * EXPERTS // 2 + index}"] = maps[index].weight.grad
            found |= {f"{kind.__name__} {name} {key}": value for key, value in case.items()}
    return found


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"process-{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("kind", [Experts, GatedExperts])
@pytest.mark.parametrize("name", SHARES)
def test_two_processes_equal_one(parallel: list[dict[str, Tensor]], kind: type[Experts], name: str) -> None:
    model = layer(kind)
    alone = computed(model, torch.cat(tokens(SHARES[name])))
    for key in ("answer", "tokens"):
        joined = torch.cat([found[f"{kind.__name__} {name} {key}"] for found in parallel])
        torch.testing.assert_close(joined, alone[key], rtol=1e-12, atol=1e-12)
    for rank, found in enumerate(parallel):
        torch.testing.assert_close(found[f"{kind.__name__} {name} router"], alone["router"], rtol=1e-10, atol=1e-10)
        for index in range(rank * EXPERTS // 2, (rank + 1) * EXPERTS // 2):
            for part, maps in model.experts.named_children():
                gradient = found[f"{kind.__name__} {name} {part}.{index}"]
                torch.testing.assert_close(gradient, maps[index].weight.grad, rtol=1e-10, atol=1e-10)
    # Tokens did travel: each process's go to experts of both.
    if name == "uneven":
        chosen = model.routing.choice.chosen
        assert {int(expert) // 2 for expert in chosen[:9].flatten()} == {0, 1}
        assert {int(expert) // 2 for expert in chosen[9:].flatten()} == {0, 1}


def test_experts_that_cannot_be_shared_out_are_refused(parallel: list[dict[str, Tensor]]) -> None:
    """In a process of the two, whose message came back as its bytes."""
    for found in parallel:
        message = bytes(found["refused"].tolist()).decode()
        assert message == "3 experts cannot be shared out evenly among 2 processes"


def test_without_processes_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        ExpertParallel(Experts(2, 4, 4))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = in_parallel(rank)
    try:
        local_experts(Experts(3, WIDTH, HIDDEN))
    except ValueError as error:
        found["refused"] = torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    save_file(found, folder / f"process-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
