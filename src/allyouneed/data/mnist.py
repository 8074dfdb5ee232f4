"""MNIST, the handwritten digits (LeCun, Bottou, Bengio and Haffner 1998), fetched at first use."""

import gzip
import pickletools
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .assets import AssetError, fetch
from .splits import SPLITS, Split, check_split

_SIDE = 28
_PORTION = 1000 * 4 * _SIDE * _SIDE


def mnist(
    split: Split, *, report: Callable[[str], None] | None = None
) -> tuple[UInt8[Tensor, "images 28 28"], Int64[Tensor, "images"]]:
    """Return images of handwritten digits, 0 for the ground to 255 for full ink, and the digits that they show.

    The splits have 50,000, 10,000 and 10,000 images. The test is the original test set; training and validation are the
    original training set, cut after its first 50,000.

    Args:
        split: Which part.
        report: As in `fetch`.

    Raises:
        ValueError: There is no such split.
        AssetError: The data set is not in the cache and could not be downloaded, or is damaged.
    """
    check_split(split)
    images, digits = _read(fetch("mnist", report=report) / "mnist.pkl.gz")[split]
    return images.clone(), digits.clone()


@cache
def _read(path: Path) -> dict[Split, tuple[Tensor, Tensor]]:
    """Read the six arrays, images and digits of each split, that the file holds as byte strings.

    The file is a pickle. It is never unpickled, which would run what it says: its operations are listed, which runs
    nothing, and the only ones that carry a long string carry, in this order, the arrays' contents. Pixels are stored as
    float32 in units of 1/256, digits as int64.
    """
    arrays: list[Tensor] = []
    try:
        with gzip.open(path) as stream:
            for operation, content, _ in pickletools.genops(cast("IO[bytes]", stream)):
                if operation.name == "BINSTRING" and isinstance(content, str):
                    decode = _digits if len(arrays) % 2 else _images
                    arrays.append(decode(content))
        splits = dict(zip(SPLITS, zip(arrays[::2], arrays[1::2], strict=True), strict=True))
        if any(len(images) != len(digits) for images, digits in splits.values()):
            raise ValueError("it has not as many digits as images")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise AssetError(
            f"{path} cannot be read as MNIST ({error}): remove {path.parent}, then run `allyouneed fetch mnist`"
        ) from error
    return splits


def _images(content: str) -> Tensor:
    # In portions, since the float32 pixels of all the images take four times the memory of what they are turned into.
    portions = range(0, len(content), _PORTION)
    return torch.cat([_pixels(content[start : start + _PORTION].encode("latin-1")) for start in portions])


def _pixels(content: bytes) -> Tensor:
    stored = np.frombuffer(content, "<f4").reshape(-1, _SIDE, _SIDE) * 256
    if not ((stored >= 0) & (stored < 256) & (stored == np.floor(stored))).all():
        raise ValueError("a pixel is not a whole multiple of 1/256 from 0 to 255/256")
    return torch.from_numpy(stored.astype(np.uint8))


def _digits(content: str) -> Tensor:
    digits = np.frombuffer(content.encode("latin-1"), "<i8").astype(np.int64)
    if not ((digits >= 0) & (digits <= 9)).all():
        raise ValueError("a label is not a digit from 0 to 9")
    return torch.from_numpy(digits)
