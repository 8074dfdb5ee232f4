"""Make the small stand-in for MNIST out of MNIST: `python tests/standins/make_mnist.py`.

It keeps the first images of every digit in each split, and writes them in the format of the real file.
"""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import torch

KEPT = {"train": 10, "validation": 4, "test": 4}


def choose(digits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the places of the first `count` of every digit, in order."""
    return torch.cat([(digits == digit).nonzero()[:count, 0] for digit in range(10)]).sort().values


def write(path: Path, splits: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write pairs of images (numbers from 0 to 255) and digits as the real file has them.

    That is a pickle of protocol 2 as Python 2 made it, where bytes are `BINSTRING`, which Python 3 no longer writes.
    """
    pairs = [
        _array(images.reshape(len(images), -1).astype("<f4") / 256) + _array(digits.astype("<i8")) + pickle.TUPLE2
        for images, digits in splits
    ]
    content = pickle.PROTO + b"\x02" + b"".join(pairs) + pickle.TUPLE3 + pickle.STOP
    with path.open("wb") as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
        packed.write(content)


def _array(array: np.ndarray) -> bytes:
    shape = b"".join(_integer(size) for size in array.shape)
    content = array.tobytes()
    return b"".join(
        [
            _name("numpy.core.multiarray", "_reconstruct"),
            _name("numpy", "ndarray") + _integer(0) + pickle.TUPLE1 + _string(b"b") + pickle.TUPLE3 + pickle.REDUCE,
            pickle.MARK + _integer(1) + shape + (pickle.TUPLE1 if array.ndim == 1 else pickle.TUPLE2),
            _name("numpy", "dtype") + _string(array.dtype.str[1:].encode()) + _integer(0) + _integer(1),
            pickle.TUPLE3 + pickle.REDUCE + pickle.MARK + _integer(3) + _string(b"<") + pickle.NONE * 3,
            _integer(-1) + _integer(-1) + _integer(0) + pickle.TUPLE + pickle.BUILD,
            pickle.NEWFALSE + pickle.BINSTRING + struct.pack("<i", len(content)) + content,
            pickle.TUPLE + pickle.BUILD,
        ]
    )


def _integer(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def _string(value: bytes) -> bytes:
    return pickle.SHORT_BINSTRING + bytes([len(value)]) + value


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


if __name__ == "__main__":
    os.environ.pop("ALLYOUNEED_STANDINS", None)
    from allyouneed.data import SPLITS
    from allyouneed.data.mnist import mnist

    chosen = []
    for split in SPLITS:
        images, digits = mnist(split, report=print)
        kept = choose(digits, KEPT[split])
        chosen.append((images[kept].numpy(), digits[kept].numpy()))
    write(Path(__file__).parent / "mnist" / "mnist.pkl.gz", chosen)
