"""What all tests share: quiet, one thread a process, no network, and shapes that are checked."""

# ruff: noqa: E402
import os

# Read by the libraries when they are first imported.
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_threads] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from jaxtyping import install_import_hook

# Before anything of ours is imported: every annotation in the packages that handle tensors is enforced when their
# functions are called. The others refuse bad values with messages of their own, which their tests want to see.
# An int is a float where one is annotated, as PEP 484 has it.
TYPED = [f"allyouneed.{name}" for name in ("nn", "text", "data", "hub", "training", "papers")]
install_import_hook(TYPED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Read when triton is first imported: its kernels then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an accelerator, and torch finds none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
