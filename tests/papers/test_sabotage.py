"""Every claim can fail: broken as it says, its verdict turns.

A room's `test_<room>_sabotage.py` has two mappings from its claims' ids: `BROKEN` runs small trials of the whole room
and of the broken one, which shows that a trial uses what its claim is about; `SABOTAGES` changes the recorded trials,
where only the length of a real run gives a verdict.
"""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from .sabotage import check_turns, room

MODULES: dict[str, ModuleType] = {
    path.stem.removeprefix("test_").removesuffix("_sabotage"): importlib.import_module(f".{path.stem}", __package__)
    for path in sorted(Path(__file__).parent.glob("test_?*_sabotage.py"))
}


@pytest.mark.parametrize("name", MODULES)
def test_every_claim_names_its_sabotage_and_is_turned_by_it(name: str) -> None:
    experiment, _ = room(name)
    claims = [claim.id for claim in experiment.claims]
    assert [claim.id for claim in experiment.claims if not claim.sabotage] == []
    assert sorted({*MODULES[name].SABOTAGES, *MODULES[name].BROKEN}) == sorted(claims)


@pytest.mark.parametrize(
    ("name", "claim"), [(name, claim) for name, module in MODULES.items() for claim in module.SABOTAGES]
)
def test_recorded_trials_turn(name: str, claim: str) -> None:
    experiment, recorded = room(name)
    check_turns(experiment, claim, recorded, MODULES[name].SABOTAGES[claim](recorded))


@pytest.mark.parametrize(
    ("name", "claim"), [(name, claim) for name, module in MODULES.items() for claim in module.BROKEN]
)
def test_small_trials_turn(name: str, claim: str) -> None:
    experiment, _ = room(name)
    check_turns(experiment, claim, *MODULES[name].BROKEN[claim]())
