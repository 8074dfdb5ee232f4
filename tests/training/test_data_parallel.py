"""Two processes that share every batch take the steps of one process that has the whole of it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("data_parallel.py")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_parallel", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two processes, joined by gloo; what they leave is in this folder."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def parallel(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"process-{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(script: ModuleType, folder: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return script.results(Fabric(accelerator="cpu", devices=1), folder)


def test_losses_and_weights_are_those_of_one_process(alone: dict[str, Tensor], parallel: list[dict[str, Tensor]]):
    compared = [name for name in alone if ":" in name and "in 16 bits" not in name]
    assert len(compared) == 16
    for found in parallel:
        for name in compared:
            # Losses are recorded in 32 bits, weights are in 64.
            tolerance = 1e-6 if name.endswith("losses") else 1e-12
            torch.testing.assert_close(found[name], alone[name], rtol=tolerance, atol=tolerance)


def test_in_16_bits_processes_agree_and_take_the_steps_of_one(
    alone: dict[str, Tensor], parallel: list[dict[str, Tensor]]
):
    """Their 32-bit copies would part if the gradient of a part of a batch stayed with its process."""
    compared = [name for name in alone if "in 16 bits" in name]
    assert len(compared) == 4 and alone["in 16 bits: 1.weight"].dtype == torch.bfloat16
    for name in compared:
        assert torch.equal(parallel[0][name], parallel[1][name])
        torch.testing.assert_close(parallel[0][name], alone[name], rtol=2**-7, atol=2**-9)


def test_the_steps_differ_by_configuration(alone: dict[str, Tensor]):
    """Otherwise a comparison that ignores clipping would pass as well."""
    assert not torch.allclose(alone["plain: 1.weight"], alone["not clipped: 1.weight"], atol=1e-6)


def test_the_first_process_alone_logs_and_saves(alone: dict[str, Tensor], parallel: list[dict[str, Tensor]]):
    assert alone["logged"].tolist() == [4, 5, 6] == parallel[0]["logged"].tolist()
    assert parallel[1]["logged"].tolist() == []


def test_processes_draw_numbers_of_their_own(parallel: list[dict[str, Tensor]]):
    assert not torch.equal(parallel[0]["drawn"], parallel[1]["drawn"])


def test_a_batch_of_fewer_rows_than_processes_is_refused(parallel: list[dict[str, Tensor]], folder: Path):
    for rank in range(2):
        assert (folder / f"refused-{rank}.txt").read_text() == "a batch of [1] rows cannot be split into 2 parts"
