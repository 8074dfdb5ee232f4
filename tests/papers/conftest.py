"""What the tests of experiments share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def standins() -> Iterator[None]:
    """Small files in the place of all that trials would fetch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(Path(__file__).parents[1] / "standins"))
        yield
