"""The reading list: every paper's facts, and where its room, results and note lie.

The list itself is `catalog.toml`. Nothing heavy is imported here, so that commands that only read the list answer at
once.
"""

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

PACKAGE = Path(__file__).resolve().parent
CATALOG = PACKAGE / "catalog.toml"
LONGEST_IDEA = 159
"""Characters that an entry's `idea` may have."""

Status = Literal["works", "planned"]


class CatalogError(ValueError):
    """A catalog that breaks its own rules; the message names the entry and the value."""


class UnknownPaper(LookupError):  # noqa: N818
    """A name that no paper of the catalog goes by.

    Attributes:
        name: What was asked for.
        matches: Up to three rooms whose names or titles come nearest, the nearest first.
    """

    def __init__(self, name: str, matches: tuple[str, ...] = ()) -> None:
        nearest = f"; nearest: {', '.join(matches)}" if matches else ""
        super().__init__(f'unknown paper "{name}"{nearest} (`allyouneed list` shows all)')
        self.name = name
        self.matches = matches


@dataclass(frozen=True)
class Paper:
    """One entry of the reading list.

    Attributes:
        number: Place in the reading list, from 1.
        room: Name of its module under `allyouneed.papers`.
        aliases: Other names that it goes by.
        title: As published.
        authors: All of them up to six, else the first three and "et al.".
        year: Of the first publication.
        link: The paper's own page.
        family: One of `families()`.
        idea: What the paper introduced, in one sentence.
        builds_on: Rooms whose papers it builds on; its room may import these and no others.
    """

    number: int
    room: str
    aliases: tuple[str, ...]
    title: str
    authors: tuple[str, ...]
    year: int
    link: str
    family: str
    idea: str
    builds_on: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The room's name as commands and file names write it: "layer-norm" for `layer_norm`."""
        return self.room.replace("_", "-")

    @property
    def folder(self) -> Path:
        """The room's folder in the package, whether or not it exists yet."""
        return PACKAGE / "papers" / self.room

    def results(self, scale: str) -> Path:
        """Return where the room's recorded results at a scale belong ("laptop", "gpu"), recorded or not."""
        return self.folder / "results" / f"{scale}.json"

    @property
    def note(self) -> Path | None:
        """The reading note on the paper: beside the package's modules when installed, else at the repository's root."""
        name = f"{self.number:02d}-{self.slug}.md"
        places = (PACKAGE / "notes" / name, PACKAGE.parent.parent / "notes" / name)
        return next((place for place in places if place.is_file()), None)

    @property
    def status(self) -> Status:
        """Read off the disk: "works" once the room has code, an experiment and recorded laptop results."""
        needed = (self.folder / "__init__.py", self.folder / "experiment.py", self.results("laptop"))
        return "works" if all(path.is_file() for path in needed) else "planned"


@dataclass(frozen=True)
class Catalog:
    """A reading list that has passed its checks.

    Attributes:
        families: The families that papers are sorted into, in their order.
        papers: The entries in order of number.
    """

    families: tuple[str, ...]
    papers: tuple[Paper, ...]


def papers() -> tuple[Paper, ...]:
    """Return the reading list in order of number.

    Raises:
        CatalogError: Where `catalog.toml` breaks a rule.
    """
    return _catalog().papers


def families() -> tuple[str, ...]:
    """Return the families that papers are sorted into, in their order."""
    return _catalog().families


def find(name: str) -> Paper:
    """Return the paper that goes by a name.

    Args:
        name: Its number ("19", "019"), room ("layer_norm"), slug ("layer-norm") or alias ("rnn-with-layernorm"), in
            upper or lower case.

    Raises:
        UnknownPaper: No paper goes by that name; `matches` has the nearest.
    """
    key = _key(name)
    is_number = key.isdecimal()
    paper = _by_name().get(key.lstrip("0") if is_number else key)
    if paper is None:
        raise UnknownPaper(name, () if is_number else _nearest(key))
    return paper


def load(path: Path = CATALOG) -> Catalog:
    """Read a catalog from a file.

    Raises:
        CatalogError: Where it is not TOML or breaks a rule; the message begins with the file's name.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except CatalogError as error:
        raise CatalogError(f"{path.name}: {error}") from error


def parse(text: str) -> Catalog:
    """Read a catalog from the text of a TOML file.

    The text has the list `families` and one `[[paper]]` table an entry, with the fields of `Paper`. Numbers run from 1
    without a gap and in order; rooms and aliases are unique; `builds_on` names rooms of the catalog and never leads
    back to where it began.

    Raises:
        CatalogError: Where the text is not TOML or breaks a rule; the message names the entry.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"not valid TOML: {error}") from error
    if unknown := document.keys() - {"families", "paper"}:
        raise CatalogError(f"unknown key {min(unknown)!r}; a catalog has families and [[paper]] tables")
    names = _value(document, "families", tuple, "the catalog")
    entries = document.get("paper", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CatalogError("paper is no list of tables; write each entry under [[paper]]")
    listed = tuple(_entry(entry, place) for place, entry in enumerate(entries, start=1))
    _check_numbers(listed)
    for paper in listed:
        _check_fields(paper, names)
    _check_names(listed)
    _check_builds_on(listed)
    return Catalog(names, listed)


@cache
def _catalog() -> Catalog:
    return load()


@cache
def _by_name() -> dict[str, Paper]:
    return {name: paper for paper in papers() for name in (str(paper.number), *_names(paper))}


def _key(name: str) -> str:
    return name.strip().casefold().replace("_", "-")


def _names(paper: Paper) -> list[str]:
    return [_key(name) for name in (paper.room, *paper.aliases)]


def _nearest(key: str) -> tuple[str, ...]:
    from difflib import SequenceMatcher

    def likeness(paper: Paper) -> float:
        whole = _names(paper)
        words = [word for name in whole for word in name.split("-")] + re.findall(r"\w+", paper.title.casefold())
        return max(SequenceMatcher(None, key, term).ratio() for term in (*whole, *words))

    likenesses = {paper.room: likeness(paper) for paper in papers()}
    close = [room for room, ratio in likenesses.items() if ratio >= 0.6]
    return tuple(sorted(close, key=likenesses.__getitem__, reverse=True)[:3])


def _label(paper: Paper) -> str:
    return f"paper {paper.number} ({paper.room})"


def _entry(entry: dict[str, Any], place: int) -> Paper:
    label = f"[[paper]] table {place} ({entry.get('room', 'no room')})"
    wanted = {field.name: field.type for field in fields(Paper)}
    if unknown := entry.keys() - wanted.keys():
        raise CatalogError(f"{label}: unknown field {min(unknown)!r}; an entry has {', '.join(wanted)}")
    kinds = {name: kind if isinstance(kind, type) else tuple for name, kind in wanted.items()}
    return Paper(**{name: _value(entry, name, kind, label) for name, kind in kinds.items()})


def _value(table: dict[str, Any], name: str, kind: type, label: str) -> Any:
    if name not in table:
        raise CatalogError(f"{label}: {name} is missing")
    value = table[name]
    if kind is tuple:
        if isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value):
            return tuple(value)
        raise CatalogError(f"{label}: {name} is {value!r}, not a list of names")
    if type(value) is not kind or value == "":
        raise CatalogError(f"{label}: {name} is {value!r}, not {'a whole number' if kind is int else 'a text'}")
    return value


def _check_numbers(listed: Iterable[Paper]) -> None:
    seen: dict[int, Paper] = {}
    for place, paper in enumerate(listed, start=1):
        if paper.number in seen:
            raise CatalogError(f"{_label(paper)}: number {paper.number} is already {seen[paper.number].room}'s")
        seen[paper.number] = paper
        if paper.number != place:
            raise CatalogError(f"{_label(paper)}: stands where number {place} belongs")


def _check_fields(paper: Paper, family_names: tuple[str, ...]) -> None:
    rules: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("room", lambda room: re.fullmatch(r"[a-z][a-z0-9_]*", room) is not None, "a module name in lower case"),
        (
            "aliases",
            lambda names: all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in names),
            'names of lower-case letters, digits and "-" that begin with a letter',
        ),
        ("authors", bool, "at least one name"),
        ("link", lambda link: link.startswith("https://") and " " not in link, "an https address"),
        ("family", lambda family: family in family_names, f"one of {', '.join(family_names)}"),
        (
            "idea",
            lambda idea: idea.endswith(".") and len(idea) <= LONGEST_IDEA,
            f"a sentence of at most {LONGEST_IDEA} characters that ends with a full stop",
        ),
    )
    for name, holds, expected in rules:
        value = getattr(paper, name)
        if not holds(value):
            raise CatalogError(f"{_label(paper)}: {name} is {value!r}, not {expected}")


def _check_names(listed: Iterable[Paper]) -> None:
    owners: dict[str, Paper] = {}
    for paper in listed:
        for name in _names(paper):
            if name in owners:
                raise CatalogError(f"{_label(paper)}: the name {name!r} is already {_label(owners[name])}'s")
            owners[name] = paper


def _check_builds_on(listed: tuple[Paper, ...]) -> None:
    from graphlib import CycleError, TopologicalSorter

    rooms = {paper.room for paper in listed}
    for paper in listed:
        for room in paper.builds_on:
            if room not in rooms:
                raise CatalogError(f"{_label(paper)}: builds_on names {room!r}, which is no room of the catalog")
        if len(set(paper.builds_on)) != len(paper.builds_on):
            raise CatalogError(f"{_label(paper)}: builds_on names a room twice: {', '.join(paper.builds_on)}")
    try:
        TopologicalSorter({paper.room: paper.builds_on for paper in listed}).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise CatalogError(f"builds_on leads back to where it began: {circle}") from error
