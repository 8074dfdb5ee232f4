"""What every room has recorded follows from its trials."""

import pytest

from allyouneed import catalog
from allyouneed.evidence import read_results, verify
from allyouneed.library import experiment_of

BUILT = [paper for paper in catalog.papers() if (paper.folder / "experiment.py").is_file()]


@pytest.mark.parametrize("scale", ["laptop", "gpu"])
@pytest.mark.parametrize("paper", BUILT, ids=lambda paper: paper.room)
def test_recorded_results_follow_from_their_trials(paper: catalog.Paper, scale: str) -> None:
    path = paper.results(scale)
    if not path.is_file():
        pytest.skip(f"{paper.room} has nothing recorded at the {scale} scale")
    verify(experiment_of(paper), read_results(path))
