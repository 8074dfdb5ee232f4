"""The reading list: its facts against an independent table, the names it is found by, and what a room may import."""

import ast
import json
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

from allyouneed import catalog
from allyouneed.catalog import CatalogError, Paper, UnknownPaper, families, find, papers

# Number, room, alias, year, arXiv id and family, "-" where there is none.
READING_LIST = """
    1 transformer - 2017 1706.03762 architecture
    2 gpt1 gpt-1 2018 - pre-training
    3 bert - 2018 1810.04805 pre-training
    4 t5 - 2019 1910.10683 pre-training
    5 gpt2 gpt-2 2019 - pre-training
    6 gpt3 gpt-3 2020 2005.14165 pre-training
    7 scaling_laws scaling-laws-evaluation 2020 2001.08361 scaling
    8 chinchilla - 2022 2203.15556 scaling
    9 llama1 llama-1 2023 2302.13971 pre-training
    10 instruct_gpt - 2022 2203.02155 alignment
    11 lora gpt2-with-lora 2021 2106.09685 adaptation
    12 qlora llama-with-qlora 2023 2305.14314 adaptation
    13 dpr - 2020 2004.04906 retrieval
    14 rag - 2020 2005.11401 retrieval
    15 retro - 2021 2112.04426 retrieval
    16 internet_augmented - 2022 2203.05115 retrieval
    17 hyde - 2022 2212.10496 retrieval
    18 flash_attention - 2022 2205.14135 architecture
    19 alibi - 2021 2108.12409 architecture
    20 codex - 2021 2107.03374 pre-training
    21 layer_norm rnn-with-layernorm 2016 1607.06450 architecture
    22 pre_layer_norm transformer-with-pre-layernorm 2020 2002.04745 architecture
    23 ppo - 2017 1707.06347 alignment
    24 wizard_coder - 2023 2306.08568 self-improvement
    25 llama2 llama-2 2023 2307.09288 alignment
    26 rwkv - 2023 2305.13048 architecture
    27 rlaif - 2022 2212.08073 alignment
    28 moe - 2017 1701.06538 architecture
    29 clip - 2021 2103.00020 pre-training
    30 vit - 2020 2010.11929 architecture
    31 generative_agents - 2023 2304.03442 systems-and-agents
    32 hallucination_detection - 2023 - self-improvement
    33 dpo - 2023 2305.18290 alignment
    34 consistency_models - 2023 2303.01469 diffusion-and-control
    35 latent_consistency latent-consistency-models 2023 2310.04378 diffusion-and-control
    36 lcm_lora latent-consistency-models-with-lora 2023 2311.05556 diffusion-and-control
    37 chain_of_note chain-of-noting 2023 2311.09210 retrieval
    38 emergent_abilities - 2022 2206.07682 scaling
    39 q_transformer - 2023 2309.10150 diffusion-and-control
    40 llama_guard - 2023 2312.06674 alignment
    41 rest_em llama-restem 2023 2312.06585 self-improvement
    42 moe_explained - 2023 - architecture
    43 spin self-play-finetuning 2024 2401.01335 alignment
    44 self_instruct gpt3-with-self-instruct 2022 2212.10560 self-improvement
    45 pythia - 2023 2304.01373 pre-training
    46 self_rewarding llama2-self-rewarding 2024 2401.10020 alignment
    47 product_copilot - 2023 2312.14231 systems-and-agents
    48 mrl matryoshka 2022 2205.13147 adaptation
    49 serving - 2023 2312.15234 systems-and-agents
    50 synthetic_data - 2024 - self-improvement
    51 whisper - 2022 2212.04356 pre-training
"""
ROWS = [line.split() for line in READING_LIST.split("\n") if line]

OTHER_LINKS = {
    "gpt1": "https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf",
    "gpt2": "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    "hallucination_detection": "https://eugeneyan.com/writing/finetuning/",
    "moe_explained": "https://huggingface.co/blog/moe",
    "synthetic_data": "https://eugeneyan.com/writing/synthetic/",
}

ARXIV = "https://arxiv.org/abs/"
PAPERS_FOLDER = Path(catalog.__file__).parent / "papers"


def test_has_all_fifty_one_and_no_other():
    assert len(ROWS) == 51
    assert [(paper.number, paper.room) for paper in papers()] == [(int(row[0]), row[1]) for row in ROWS]


@pytest.mark.parametrize(("number", "room", "alias", "year", "arxiv", "family"), ROWS, ids=[row[1] for row in ROWS])
def test_facts(number: str, room: str, alias: str, year: str, arxiv: str, family: str):
    paper = find(room)
    assert paper.number == int(number)
    assert paper.aliases == (() if alias == "-" else (alias,))
    assert paper.year == int(year)
    assert paper.family == family
    assert paper.link == (OTHER_LINKS[room] if arxiv == "-" else ARXIV + arxiv)


def test_families_are_in_the_order_of_the_reading_list_and_none_is_empty():
    assert families() == (
        "architecture",
        "pre-training",
        "scaling",
        "adaptation",
        "retrieval",
        "alignment",
        "self-improvement",
        "diffusion-and-control",
        "systems-and-agents",
    )
    assert {paper.family for paper in papers()} == set(families())


@pytest.mark.parametrize("paper", papers(), ids=lambda paper: paper.room)
def test_reads_well(paper: Paper):
    assert len(paper.idea) < 160
    assert paper.idea.endswith(".")
    assert paper.idea.count(". ") == 0, "one sentence"
    assert paper.idea[0].isupper()
    assert not paper.title.endswith(".")
    assert 1 <= len(paper.authors) <= 6
    if "et al." in paper.authors:
        assert paper.authors.index("et al.") == len(paper.authors) - 1 == 3


def test_ideas_and_titles_are_each_papers_own():
    assert len({paper.idea for paper in papers()}) == len({paper.title for paper in papers()}) == 51


def test_no_paper_builds_on_itself_or_round_a_circle():
    builds_on = {paper.room: set(paper.builds_on) for paper in papers()}
    settled: set[str] = set()
    while ready := {room for room, needs in builds_on.items() if room not in settled and needs <= settled}:
        settled |= ready
    assert builds_on.keys() - settled == set()


def test_no_paper_builds_on_a_later_one():
    def arxiv(paper: Paper) -> str | None:
        return paper.link.removeprefix(ARXIV) if paper.link.startswith(ARXIV) else None

    for paper in papers():
        for earlier in map(find, paper.builds_on):
            assert earlier.year <= paper.year, f"{paper.room} builds on {earlier.room}"
            mine, theirs = arxiv(paper), arxiv(earlier)
            if mine and theirs:
                assert theirs < mine, f"{paper.room} builds on {earlier.room}"


@pytest.mark.parametrize(
    ("room", "parent"),
    [
        ("gpt2", "gpt1"),
        ("qlora", "lora"),
        ("rag", "dpr"),
        ("llama2", "llama1"),
        ("dpo", "instruct_gpt"),
        ("instruct_gpt", "ppo"),
        ("lcm_lora", "lora"),
        ("latent_consistency", "consistency_models"),
        ("alibi", "transformer"),
    ],
)
def test_builds_on_what_its_paper_says(room: str, parent: str):
    assert parent in find(room).builds_on


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("19", "alibi"),
        ("019", "alibi"),
        (" 1 ", "transformer"),
        ("51", "whisper"),
        ("layer_norm", "layer_norm"),
        ("layer-norm", "layer_norm"),
        ("Layer-Norm", "layer_norm"),
        ("LAYER_NORM", "layer_norm"),
        ("rnn-with-layernorm", "layer_norm"),
        ("RNN-with-LayerNorm", "layer_norm"),
        ("gpt-2", "gpt2"),
        ("gpt2-with-lora", "lora"),
        ("matryoshka", "mrl"),
    ],
)
def test_finds_by_number_room_slug_and_alias(name: str, room: str):
    assert find(name).room == room


def test_finds_every_paper_by_each_of_its_names():
    for paper in papers():
        for name in (str(paper.number), paper.room, paper.slug, *paper.aliases):
            assert find(name) is paper


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("alibbi", "alibi"),
        ("layer-nrom", "layer_norm"),
        ("self-rewardng", "self_rewarding"),
        ("flash", "flash_attention"),
    ],
)
def test_unknown_name_tells_the_nearest(name: str, nearest: str):
    with pytest.raises(UnknownPaper) as caught:
        find(name)
    assert caught.value.matches[0] == nearest
    assert len(caught.value.matches) <= 3
    assert str(caught.value).startswith(f'unknown paper "{name}"; nearest: {nearest}')
    assert "`allyouneed list` shows all" in str(caught.value)


def test_nearest_looks_at_aliases_and_the_words_of_titles():
    with pytest.raises(UnknownPaper) as by_alias:
        find("matrioshka")
    assert by_alias.value.matches[0] == "mrl"
    with pytest.raises(UnknownPaper) as by_title:
        find("simulacrum")
    assert by_title.value.matches[0] == "generative_agents"


def test_nearest_are_three_at_most_and_the_first_listed_of_equals():
    with pytest.raises(UnknownPaper) as caught:
        find("language")
    assert caught.value.matches == ("gpt1", "bert", "gpt2")


@pytest.mark.parametrize("name", ["0", "52", "999", "", "zzzzzz"])
def test_unknown_name_with_nothing_near(name: str):
    with pytest.raises(UnknownPaper) as caught:
        find(name)
    assert caught.value.matches == ()
    assert isinstance(caught.value, LookupError)
    assert "nearest" not in str(caught.value)


def test_slug_and_folder():
    paper = find("pre_layer_norm")
    assert paper.slug == "pre-layer-norm"
    assert paper.folder == PAPERS_FOLDER / "pre_layer_norm"
    assert paper.results("gpu") == paper.folder / "results" / "gpu.json"


def test_status_is_read_off_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paper = find("alibi")
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path)
    needed = [paper.folder / "__init__.py", paper.folder / "experiment.py", paper.results("laptop")]
    assert all(tmp_path in path.parents for path in needed)
    assert paper.status == "planned"
    for path in needed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert paper.status == "works"
    assert find("transformer").status == "planned"
    for path in needed:
        path.unlink()
        assert paper.status == "planned", f"without {path.name}"
        path.touch()
    paper.results("laptop").rename(paper.results("gpu"))
    assert paper.status == "planned"


def test_note_is_the_packages_own_or_the_repositorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "src" / "allyouneed"
    monkeypatch.setattr(catalog, "PACKAGE", package)
    paper = find("bert")
    assert paper.note is None
    for folder in (tmp_path / "notes", package / "notes"):
        folder.mkdir(parents=True)
        (folder / "03-bert.md").touch()
        assert paper.note == folder / "03-bert.md"
    assert find("layer_norm").note is None
    (tmp_path / "notes" / "21-layer-norm.md").touch()
    assert find("layer_norm").note == tmp_path / "notes" / "21-layer-norm.md"


def test_every_note_belongs_to_a_paper():
    notes = Path(__file__).parents[1] / "notes"
    named = {f"{paper.number:02d}-{paper.slug}.md" for paper in papers()}
    assert {path.name for path in notes.glob("[0-9][0-9]-*.md")} <= named


def test_import_is_light():
    code = "import sys, allyouneed.catalog as c; c.papers(); print(*(m for m in sys.modules if '.' not in m))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "allyouneed" in modules
    assert (
        set(modules) & {"torch", "numpy", "scipy", "jaxtyping", "rich", "typer", "transformers", "lightning"} == set()
    )


def room_imports(source: str, module: str) -> set[str]:
    """Name the rooms that a module's source imports, its own among them.

    A bare import of the package of rooms, which could reach any of them, counts as the room "*".
    """
    reached: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            reached += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            reached += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"}:
                reached.append(str(node.args[0].value))
    rooms = set()
    for name in reached:
        parts = name.split(".")
        if parts[:2] == ["allyouneed", "papers"]:
            rooms.add(parts[2] if len(parts) > 2 else "*")
    return rooms


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import torch\nfrom allyouneed.nn import Attention\nfrom allyouneed.catalog import papers", set()),
        ("import allyouneed.papers.lora", {"lora"}),
        ("import torch, allyouneed.papers.lora.adapters as adapters", {"lora"}),
        ("from allyouneed.papers.lora import LoRA", {"lora"}),
        ("from allyouneed.papers.lora.adapters import LoRA", {"lora"}),
        ("from allyouneed.papers import lora, llama1 as llama", {"lora", "llama1"}),
        ("from .. import lora", {"lora"}),
        ("from ..lora import LoRA", {"lora"}),
        ("from ..lora.adapters import LoRA", {"lora"}),
        ("from . import quantisation\nfrom .quantisation import NF4", {"qlora"}),
        ("def late():\n    from ..llama1 import Llama\n    return Llama", {"llama1"}),
        ("import importlib\nlora = importlib.import_module('allyouneed.papers.lora')", {"lora"}),
        ("import allyouneed.papers", {"*"}),
        ("from allyouneed import papers", {"*"}),
    ],
)
def test_room_imports_sees_every_way_to_import(source: str, rooms: set[str]):
    assert room_imports(source, "allyouneed.papers.qlora.experiment") == rooms


def test_rooms_import_only_what_they_build_on():
    known = {paper.room for paper in papers()}
    wrong = []
    for folder in sorted(path for path in PAPERS_FOLDER.iterdir() if any(path.rglob("*.py"))):
        assert folder.name in known, f"{folder.name} is a folder of papers/ and no room of the catalog"
        for path in sorted(folder.rglob("*.py")):
            module = ".".join(("allyouneed", "papers", *path.relative_to(PAPERS_FOLDER).with_suffix("").parts))
            # By it any model is loaded: it names rooms, and imports none.
            allowed = {folder.name, "readers", *find(folder.name).builds_on}
            wrong += [
                f"{module} imports {room}"
                for room in sorted(room_imports(path.read_text(encoding="utf-8"), module) - allowed)
            ]
    assert wrong == [], "a room imports only rooms in its builds_on"


def entry(number: object, room: str, **changed: object) -> str:
    values: dict[str, object] = {
        "number": number,
        "room": room,
        "aliases": [],
        "title": f"On {room}",
        "authors": ["Ada Lovelace"],
        "year": 1843,
        "link": "https://example.org/paper",
        "family": "engines",
        "idea": "It weaves patterns of algebra.",
        "builds_on": [],
    }
    values |= changed
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    return "\n".join(["[[paper]]", *lines, ""])


def parse(*entries: str) -> catalog.Catalog:
    return catalog.parse("\n".join(['families = ["engines", "looms"]', *entries]))


def test_parses_a_catalog_in_order():
    read = parse(entry(1, "loom", family="looms", aliases=["jacquard"]), entry(2, "engine", builds_on=["loom"]))
    assert read.families == ("engines", "looms")
    assert [paper.room for paper in read.papers] == ["loom", "engine"]
    assert read.papers[0].aliases == ("jacquard",)
    assert read.papers[1].builds_on == ("loom",)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(1, "loom"), entry(1, "engine")], r"paper 1 \(engine\): number 1 is already loom's"),
        ([entry(1, "loom"), entry(3, "engine")], r"paper 3 \(engine\): stands where number 2 belongs"),
        ([entry(2, "loom"), entry(1, "engine")], r"paper 2 \(loom\): stands where number 1 belongs"),
        ([entry(0, "loom")], r"paper 0 \(loom\)"),
        ([entry(1, "loom"), entry(2, "loom")], r"paper 2 \(loom\): the name 'loom' is already paper 1 \(loom\)'s"),
        ([entry(1, "loom"), entry(2, "engine", aliases=["loom"])], r"paper 2 \(engine\): the name 'loom'"),
        (
            [entry(1, "jacquard_loom"), entry(2, "engine", aliases=["jacquard-loom"])],
            r"paper 2 \(engine\): the name 'jacquard-loom' is already paper 1",
        ),
        ([entry(1, "loom", aliases=["weaver", "weaver"])], r"paper 1 \(loom\): the name 'weaver' is already"),
        ([entry(1, "engine", builds_on=["lom"])], r"paper 1 \(engine\): builds_on names 'lom', which is no room"),
        ([entry(1, "loom"), entry(2, "engine", builds_on=["loom", "loom"])], r"paper 2 \(engine\): .* twice"),
        ([entry(1, "loom", builds_on=["loom"])], r"leads back to where it began: loom → loom"),
        (
            [entry(1, "a", builds_on=["b"]), entry(2, "b", builds_on=["c"]), entry(3, "c", builds_on=["a"])],
            r"leads back to where it began: (a → b → c → a|b → c → a → b|c → a → b → c)",
        ),
        ([entry(1, "loom", title=None)], r"table 1 \(loom\): title is missing"),
        ([entry(1, "loom", title="")], r"table 1 \(loom\): title is '', not a text"),
        ([entry(1, "loom", color="red")], r"table 1 \(loom\): unknown field 'color'"),
        ([entry(1, "loom", year="1843")], r"table 1 \(loom\): year is '1843', not a whole number"),
        ([entry(True, "loom")], r"table 1 \(loom\): number is True, not a whole number"),
        ([entry(1, "loom", aliases="jacquard")], r"table 1 \(loom\): aliases is 'jacquard', not a list"),
        ([entry(1, "loom", authors=[])], r"paper 1 \(loom\): authors is \(\), not at least one name"),
        ([entry(1, "Loom")], r"paper 1 \(Loom\): room is 'Loom', not a module name"),
        ([entry(1, "loom", aliases=["19"])], r"paper 1 \(loom\): aliases is \('19',\), not names"),
        ([entry(1, "loom", link="example.org")], r"paper 1 \(loom\): link is 'example.org', not an https address"),
        ([entry(1, "loom", family="mills")], r"paper 1 \(loom\): family is 'mills', not one of engines, looms"),
        ([entry(1, "loom", idea="It weaves")], r"paper 1 \(loom\): idea is 'It weaves', not a sentence"),
        ([entry(1, "loom", idea="a" * 159 + ".")], r"paper 1 \(loom\): idea is .* at most 159 characters"),
        (["[[papers]]"], r"unknown key 'papers'"),
        (["paper = 3"], r"paper is no list of tables"),
        (["[[paper]"], r"not valid TOML: .*line 2"),
    ],
)
def test_malformed_catalog_names_the_entry(entries: list[str], message: str):
    with pytest.raises(CatalogError, match=message):
        parse(*entries)


def test_catalog_without_families_is_refused():
    with pytest.raises(CatalogError, match="the catalog: families is missing"):
        catalog.parse(entry(1, "loom"))


def test_loads_a_file_and_names_it_where_it_is_malformed(tmp_path: Path):
    path = tmp_path / "other.toml"
    path.write_text('families = ["engines"]\n' + entry(1, "loom"), encoding="utf-8")
    assert [paper.room for paper in catalog.load(path).papers] == ["loom"]
    path.write_text('families = ["engines"]\n' + entry(2, "loom"), encoding="utf-8")
    with pytest.raises(CatalogError, match=r"^other\.toml: paper 2 \(loom\)"):
        catalog.load(path)
