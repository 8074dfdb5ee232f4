"""The documents' Python runs as it stands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allyouneed import catalog

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((catalog.PACKAGE / "papers").glob("*/readme.md"))]


def snippets(path: Path) -> Iterator[Any]:
    """Give each block of Python with the lines before it."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines_before = text[: found.start(1)].count("\n")
        yield pytest.param(path, lines_before, found[1], id=f"{path.relative_to(ROOT)}:{lines_before}")


SNIPPETS = [snippet for path in DOCUMENTS for snippet in snippets(path)]


@pytest.mark.parametrize(("path", "lines_before", "code"), SNIPPETS)
def test_a_snippet_runs(
    path: Path, lines_before: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself, as a reader copies it; lines of an error are those of the document."""
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * lines_before + code, str(path), "exec"), {"__name__": "__main__"})


def test_the_readme_has_a_snippet() -> None:
    assert any(snippet.values[0] == ROOT / "README.md" for snippet in SNIPPETS)
