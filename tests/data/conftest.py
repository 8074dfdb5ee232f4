"""A cache that is empty at the start of a test."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache, with every other setting of the assets unset."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALLYOUNEED_CACHE", str(folder))
    for name in ("ALLYOUNEED_OFFLINE", "ALLYOUNEED_STANDINS"):
        monkeypatch.delenv(name, raising=False)
    return folder
