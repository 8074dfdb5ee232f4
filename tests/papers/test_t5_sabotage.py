"""How each of T5's claims is broken, and its verdict with it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.t5 import texts, trials
from allyouneed.papers.t5.experiment import EXPERIMENT

from .sabotage import Breakage, Sabotage, as_if, exchanged, in_turn, tried

STANDINS = Path(__file__).parents[1] / "standins"
CACHED: tuple[Any, ...] = (texts.plain_texts, texts.tokenizer, texts.unlabelled, texts.training, texts.held_out)


def without_sight() -> tuple[list[TrialResult], list[TrialResult]]:
    """Fine-tune small models that read and that do not, and the same where nobody reads."""
    smoke = EXPERIMENT.scales["smoke"].arms
    arms = {
        name: dataclasses.replace(
            smoke[name],
            tasks=("qasc_overlap",),
            objective="none",
            width=32,
            labelled=60,
            fine_steps=80,
            fine_rate=8e-3,
            batch=8,
            tested=40,
        )
        for name in ("bert", "blind")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        patch.setenv("ALLYOUNEED_OFFLINE", "1")
        for cached in CACHED:
            cached.cache_clear()
        try:
            whole = tried(EXPERIMENT, arms, seeds=3)
            labelled, scored = trials.labelled, trials.scored
            blinded = {"blind": True}
            patch.setattr(
                trials, "labelled", lambda config, *rest: labelled(dataclasses.replace(config, **blinded), *rest)
            )
            patch.setattr(trials, "scored", lambda config, *rest: scored(dataclasses.replace(config, **blinded), *rest))
            return whole, tried(EXPERIMENT, arms, seeds=3)
        finally:
            for cached in CACHED:
                cached.cache_clear()


NOT_READ = in_turn(as_if("bert", "none"), as_if("continuing", "none"))
SABOTAGES: dict[str, Sabotage] = {
    "restoring_beats_language_model": exchanged("bert", "causal"),
    "restoring_beats_prefix_language_model": exchanged("bert", "prefix"),
    "restoring_beats_going_on": NOT_READ,
    "restoring_beats_deshuffling": exchanged("bert", "deshuffling"),
    "pretraining_finds_shared_words": NOT_READ,
    "multi_task_alone_is_worse": exchanged("bert", "mixture"),
}
BROKEN: dict[str, Breakage] = {"answers_are_read": without_sight}
