"""Fashion-MNIST, pictures of clothes in the form of MNIST (Xiao, Rasul and Vollgraf 2017), fetched at first use."""

import gzip
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .assets import AssetError, fetch
from .splits import Split, check_split

CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""What the labels 0 to 9 stand for."""

_SIDE = 28
_FILES = {"train": "train", "validation": "train", "test": "t10k"}
# Of the training set, the last sixth is for validation: 10,000 of 60,000.
_VALIDATION = 6


def fashion_mnist(
    split: Split, *, report: Callable[[str], None] | None = None
) -> tuple[UInt8[Tensor, "images 28 28"], Int64[Tensor, "images"]]:
    """Return pictures of clothes, 0 for the ground to 255, and what they show, a place in `CLOTHES`.

    The splits have 50,000, 10,000 and 10,000 pictures. The test is the original test set; training and validation are
    the original training set, cut after its first 50,000.

    Args:
        split: Which part.
        report: As in `fetch`.

    Raises:
        ValueError: There is no such split.
        AssetError: The data set is not in the cache and could not be downloaded, or is damaged.
    """
    check_split(split)
    images, labels = _read(fetch("fashion-mnist", report=report), _FILES[split])
    cut = len(images) - len(images) // _VALIDATION
    part = {"train": slice(None, cut), "validation": slice(cut, None), "test": slice(None)}[split]
    return images[part].clone(), labels[part].clone()


@cache
def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels) or images.shape[1:] != (_SIDE, _SIDE) or (labels >= len(CLOTHES)).any():
        raise _damaged(folder, f"{tuple(images.shape)} pictures and {len(labels)} labels up to {int(labels.max())}")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _idx(path: Path, axes: int) -> np.ndarray:
    """Read a file of MNIST's own format: two zeros, 8 for bytes, the number of axes, each one's length, the bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(content, ">i4", axes, offset=4).tolist()
        if content[:4] != bytes([0, 0, 8, axes]):
            raise ValueError(f"it begins with {content[:4].hex()}")
        return np.frombuffer(content, np.uint8, offset=4 * (1 + axes)).reshape(shape).copy()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from error


def _damaged(folder: Path, what: str) -> AssetError:
    return AssetError(
        f"{folder} cannot be read as Fashion-MNIST ({what}): remove it, then run `allyouneed fetch fashion-mnist`"
    )
