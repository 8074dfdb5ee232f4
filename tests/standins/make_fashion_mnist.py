"""Make the small stand-in for Fashion-MNIST out of it: `python tests/standins/make_fashion_mnist.py`.

It keeps the first pictures of every kind in each split, and writes them in the format of the real files.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import torch

KEPT = {"train": 10, "validation": 2, "test": 4}


def choose(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return the places of the first `count` of every kind, in order."""
    return torch.cat([(labels == label).nonzero()[:count, 0] for label in range(10)]).sort().values


def write(path: Path, array: np.ndarray) -> None:
    """Write bytes with the lengths of their axes before them, as the real files have them."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    with path.open("wb") as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
        packed.write(head + array.astype(np.uint8).tobytes())


if __name__ == "__main__":
    os.environ.pop("ALLYOUNEED_STANDINS", None)
    from allyouneed.data import SPLITS
    from allyouneed.data.fashion_mnist import fashion_mnist

    folder = Path(__file__).parent / "fashion-mnist"
    chosen = {}
    for split in SPLITS:
        images, labels = fashion_mnist(split, report=print)
        kept = choose(labels, KEPT[split])
        chosen[split] = images[kept].numpy(), labels[kept].numpy()
    # Training and validation are one file, cut after its first five sixths.
    joined = [np.concatenate(pair) for pair in zip(chosen["train"], chosen["validation"], strict=True)]
    for part, (images, labels) in {"train": joined, "t10k": chosen["test"]}.items():
        write(folder / f"{part}-images-idx3-ubyte.gz", images)
        write(folder / f"{part}-labels-idx1-ubyte.gz", labels)
