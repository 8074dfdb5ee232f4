"""How each of GPT-2's claims is broken, and its verdict with it."""

import dataclasses
from pathlib import Path

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.gpt2 import ByteLevelBPE, trials
from allyouneed.papers.gpt2.experiment import EXPERIMENT, SIZES

from .sabotage import Breakage, Sabotage, given, in_turn, tried

STANDINS = Path(__file__).parents[1] / "standins"


def in_reverse(results: list[TrialResult]) -> list[TrialResult]:
    """Let the largest model count for the smallest."""
    arms = dict(zip(SIZES, reversed(SIZES), strict=True))
    return [dataclasses.replace(trial, arm=arms.get(trial.arm, trial.arm)) for trial in results]


def as_test(kind: str) -> Sabotage:
    """Score the kind of text that was trained on in place of another."""
    return in_turn(*(given(arm, **{kind: "test"}) for arm in SIZES))


def without_capitals() -> tuple[list[TrialResult], list[TrialResult]]:
    """Encode strings as they are, and in lower case."""
    arms = {"strings": EXPERIMENT.scales["smoke"].arms["strings"]}
    encode = ByteLevelBPE.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        patch.setenv("ALLYOUNEED_OFFLINE", "1")
        trials.tokenizer.cache_clear()
        try:
            whole = tried(EXPERIMENT, arms, seeds=2)
            patch.setattr(ByteLevelBPE, "encode", lambda self, text: encode(self, text.lower()))
            return whole, tried(EXPERIMENT, arms, seeds=2)
        finally:
            trials.tokenizer.cache_clear()


SABOTAGES: dict[str, Sabotage] = {
    "test_falls_with_size": in_reverse,
    "train_falls_with_size": in_reverse,
    "brown_falls_with_size": as_test("brown"),
    "verses_fall_with_size": as_test("verses"),
    "manual_falls_with_size": as_test("manual"),
    "code_falls_with_size": as_test("code"),
}
BROKEN: dict[str, Breakage] = {"any_string_comes_back": without_capitals}
