"""How an asset is described: its package, its exact version, the members that are kept, and their checksums."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath
from typing import Literal, get_args

Source = Literal["pypi", "npm", "deb", "hub"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# Debian writes ~ before what sorts as earlier.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file inside a package, or one part of a file that several packages hold together.

    Attributes:
        path: Where it is inside the package's archive, complete: `mnist/data/mnist.pkl.gz` in a wheel,
            `name-1.0/…` in a source distribution, `package/…` in an npm package, `usr/share/…` in a Debian package,
            the file's path in a hub repository.
        file: Its name in the cache. Neighbouring members with the same name are joined, in their order.
        sha256: Of this member, in hexadecimal.
        size: Of this member, in bytes.
        package: The package that holds it, where an asset spans several of the same source and version; None for
            the asset's own.
    """

    path: str
    file: str
    sha256: str
    size: int
    package: str | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(f"path is {self.path!r}: it must be relative and stay inside the package")
        if not _PLAIN_NAME.fullmatch(self.file):
            raise ValueError(f"file is {self.file!r}: it must be a plain file name")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r}: it must be 64 hexadecimal digits in lower case")
        if self.size < 0:
            raise ValueError(f"size is {self.size}: it must be a number of bytes")


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Files of a published package: what they are, where they come from, and how to tell that they are the right ones.

    Attributes:
        name: What `fetch` takes.
        source: The registry: `pypi`, `npm`, `deb` (Debian), or `hub` (a Hugging Face repository).
        package: The package's name there; on the hub `owner/name`, or `datasets/owner/name`.
        version: Exact; on the hub a commit.
        download_size: Of all packages together as they are downloaded, in bytes.
        members: What is kept.
        licence: Of the members.
        about: One sentence.
        wheel: Whether to take a pypi package's wheel, by pip, or its source distribution, from pip's index.
        joined: The SHA-256 of whole files that are joined from several members, by name, where it was published.
    """

    name: str
    source: Source
    package: str
    version: str
    download_size: int
    members: tuple[Member, ...]
    licence: str
    about: str
    wheel: bool = True
    joined: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, value, shape, marks in (
            ("name", self.name, _PLAIN_NAME, ". _ + -"),
            ("version", self.version, _VERSION, ". _ + ~ -"),
        ):
            if not shape.fullmatch(value):
                raise ValueError(f"{label} is {value!r}: it must be letters, digits and any of {marks}")
        if self.source not in get_args(Source):
            raise ValueError(f"source is {self.source!r}: it must be one of {', '.join(get_args(Source))}")
        for package in self.packages():
            if not package or package.startswith("-"):
                raise ValueError(f"package is {package!r}: it must be a package's name")
        if not self.members:
            raise ValueError(f"asset {self.name} has no members")
        places = [(member.package or self.package, member.path) for member in self.members]
        if len(set(places)) != len(places):
            raise ValueError(f"asset {self.name} names a member twice")
        runs = [file for file, _ in groupby(member.file for member in self.members)]
        if len(set(runs)) != len(runs):
            raise ValueError(f"the members of asset {self.name} that share a file name must stand next to each other")
        for file, sha256 in self.joined.items():
            if file not in runs or not _SHA256.fullmatch(sha256):
                raise ValueError(
                    f"joined is {file!r}: {sha256!r}; it must be one of the files {', '.join(runs)} and 64 hexadecimal "
                    "digits in lower case"
                )

    def packages(self) -> dict[str, tuple[Member, ...]]:
        """Give the members that each package holds."""
        names = dict.fromkeys([member.package or self.package for member in self.members])
        return {
            name: tuple(member for member in self.members if (member.package or self.package) == name) for name in names
        }

    def files(self) -> dict[str, tuple[Member, ...]]:
        """Give, for each file in the cache, the members that it is joined from."""
        return {file: tuple(members) for file, members in groupby(self.members, key=lambda member: member.file)}

    @property
    def size(self) -> int:
        """What the asset takes in the cache, in bytes."""
        return sum(member.size for member in self.members)
