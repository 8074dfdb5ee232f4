"""`allyouneed doctor`: what this installation has, and how to get what is missing."""

import os

from allyouneed import catalog
from allyouneed.cli.common import console


def command() -> None:
    """Say what this installation has, what is missing, and how to get it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from rich.table import Table

    from allyouneed.data import ASSETS, cache_folder, is_present
    from allyouneed.evidence import runs_folder, usable_cores

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("python", platform.python_version())
    for package in ("allyouneed", "torch", "lightning-fabric", "safetensors", "tokenizers", "scipy", "joblib"):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "missing: `pip install .` in the repository installs it")
    table.add_row("cores", f"{usable_cores()}: so many trials run at a time, each with one thread")
    table.add_row(
        "threads",
        f"{torch.get_num_threads()} in this process; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
    )
    if torch.cuda.is_available():
        gpus = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        table.add_row("gpu", f"{gpus}: --device cuda")
    else:
        table.add_row("gpu", "none that torch can use; every laptop experiment runs without one")
    table.add_row("cache", f"{cache_folder()} (set ALLYOUNEED_CACHE to move it)")
    table.add_row("runs", f"{runs_folder()} (set ALLYOUNEED_RUNS to move it)")
    for asset in ASSETS.values():
        state = "present" if is_present(asset) else f"not fetched: `allyouneed fetch {asset.name}`"
        table.add_row(asset.name, state)
    works = [paper.room for paper in catalog.papers() if paper.status == "works"]
    table.add_row("rooms", f"{len(works)} of {len(catalog.papers())} work: {', '.join(works)}")
    console.print(table)
