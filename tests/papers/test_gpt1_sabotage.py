"""How each of GPT's claims is broken, and its verdict with it."""

import dataclasses
from pathlib import Path

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.gpt1 import trials
from allyouneed.papers.gpt1.experiment import EXPERIMENT, PARTS_OF
from allyouneed.papers.gpt1.fine_tuning import fine_tuning_loss
from allyouneed.papers.gpt1.pretraining import PARTS
from allyouneed.papers.gpt1.tasks import corpus

from .sabotage import Breakage, Sabotage, as_if, exchanged, given, tried

STANDINS = Path(__file__).parents[1] / "standins"
SMALL = EXPERIMENT.scales["smoke"].arms


def without_auxiliary_loss() -> tuple[list[TrialResult], list[TrialResult]]:
    """Fine-tune small models with the auxiliary objective and without, and with a loss that leaves it out of both."""
    arms = {
        name: dataclasses.replace(
            SMALL[name], examples=30, epochs=12, fine_batch=6, fine_rate=1e-2, length=32, ablations=False
        )
        for name in ("transformer", "without_auxiliary")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        patch.setenv("ALLYOUNEED_OFFLINE", "1")
        corpus.cache_clear()
        try:
            whole = tried(EXPERIMENT, arms, seeds=3)
            # What is measured, with a weight of 1, stays as it is.
            patch.setattr(
                trials,
                "fine_tuning_loss",
                lambda model, batch, *, auxiliary: fine_tuning_loss(
                    model, batch, auxiliary=auxiliary if auxiliary == 1.0 else 0.0
                ),
            )
            return whole, tried(EXPERIMENT, arms, seeds=3)
        finally:
            corpus.cache_clear()


NOTHING_TRANSFERRED = as_if("transformer", "none")
SABOTAGES: dict[str, Sabotage] = {
    "pretraining_raises_accuracy": NOTHING_TRANSFERRED,
    "pretraining_lowers_nats": NOTHING_TRANSFERRED,
    "gain_grows_with_pretraining": given("transformer", **dict.fromkeys(PARTS_OF.values(), "accuracy")),
    "layers_each_add": given("transformer", accuracy="bag_of_words", layers_2_accuracy="bag_of_words"),
    "zero_shot_grows_with_pretraining": given("transformer", **{f"zero_shot_{part}": "zero_shot_1" for part in PARTS}),
    "transformer_beats_lstm_fairly_read": exchanged("transformer", "lstm"),
}
BROKEN: dict[str, Breakage] = {"auxiliary_keeps_the_language_model": without_auxiliary_loss}
