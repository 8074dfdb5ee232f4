"""Fashion-MNIST is read as it is, and a stand-in of the same format in the same way."""

import gzip
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allyouneed.data import SPLITS, AssetError, Split, fetch, is_present, verify
from allyouneed.data.fashion_mnist import CLOTHES, fashion_mnist

STANDINS = Path(__file__).parents[1] / "standins"
MAKE = runpy.run_path(str(STANDINS / "make_fashion_mnist.py"))


@pytest.fixture
def standins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")


@pytest.fixture
def place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a stand-in that a test writes itself."""
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(tmp_path))
    (tmp_path / "fashion-mnist").mkdir()
    return tmp_path / "fashion-mnist"


def write(place: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for part in ("train", "t10k"):
        MAKE["write"](place / f"{part}-images-idx3-ubyte.gz", images)
        MAKE["write"](place / f"{part}-labels-idx1-ubyte.gz", labels)


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("split", "count"), [("train", 10), ("validation", 2), ("test", 4)])
def test_the_stand_in_has_every_kind(split: Split, count: int) -> None:
    images, labels = fashion_mnist(split)
    assert (images.shape, images.dtype) == ((10 * count, 28, 28), torch.uint8)
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [count] * len(CLOTHES)
    assert images.amax() > 250
    images.zero_()
    assert fashion_mnist(split)[0].amax() > 250


@pytest.mark.usefixtures("standins")
def test_the_splits_share_no_image() -> None:
    images = torch.cat([fashion_mnist(split)[0] for split in SPLITS]).flatten(1)
    assert len(images.unique(dim=0)) == len(images) == 160


def test_every_pixel_and_label_comes_back(place: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 28, 28)), random.integers(0, 10, 12)
    write(place, images, labels)
    for split, part in (("train", slice(10)), ("validation", slice(10, 12)), ("test", slice(12))):
        read = fashion_mnist(split)  # pyright: ignore[reportArgumentType]
        assert np.array_equal(read[0].numpy(), images[part])
        assert np.array_equal(read[1].numpy(), labels[part])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((6, 28, 28)), np.zeros(5)),
        (np.zeros((6, 27, 28)), np.zeros(6)),
        (np.zeros((6, 28, 28)), np.full(6, 10)),
        (np.zeros((6, 784)), np.zeros(6)),
        (np.zeros((6, 28, 28)), np.zeros((6, 1))),
    ],
)
def test_other_contents_are_refused(place: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(place, images, labels)
    with pytest.raises(AssetError, match="cannot be read as Fashion-MNIST"):
        fashion_mnist("train")


@pytest.mark.parametrize("keep", [0, 10, 30_000])
def test_a_cut_file_is_refused(place: Path, keep: int) -> None:
    write(place, np.random.default_rng(0).integers(0, 256, (60, 28, 28)), np.zeros(60))
    path = place / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AssetError, match="cannot be read as Fashion-MNIST"):
        fashion_mnist("train")


def test_bytes_that_are_missing_or_too_many_are_refused(place: Path) -> None:
    write(place, np.zeros((6, 28, 28)), np.zeros(6))
    path = place / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    for content in (whole[:-1], whole + b"0"):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(AssetError, match="reshape"):
            fashion_mnist("train")


@pytest.mark.usefixtures("standins")
def test_an_unknown_split_is_refused() -> None:
    # A type checker at run time refuses it before the function does.
    with pytest.raises((ValueError, TypeError), match="validation"):
        fashion_mnist("valid")  # pyright: ignore[reportArgumentType]


@pytest.mark.network
def test_the_real_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLYOUNEED_STANDINS", raising=False)
    if not is_present("fashion-mnist"):
        try:
            fetch("fashion-mnist")
        except AssetError as error:
            pytest.skip(f"Fashion-MNIST cannot be had here: {error}")
    verify("fashion-mnist")
    splits: dict[Any, Any] = {split: fashion_mnist(split) for split in SPLITS}
    assert [len(images) for images, _ in splits.values()] == [50_000, 10_000, 10_000]
    together = splits["train"][1].bincount() + splits["validation"][1].bincount()
    assert together.tolist() == [6000] * 10
    assert splits["test"][1].bincount().tolist() == [1000] * 10
    # The stand-in is made of it.
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
    for split, (images, labels) in splits.items():
        kept = MAKE["choose"](labels, MAKE["KEPT"][split])
        small = fashion_mnist(split)
        assert torch.equal(small[0], images[kept])
        assert torch.equal(small[1], labels[kept])
