"""The claims of the serving room can fail."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from allyouneed.evidence import TrialResult
from allyouneed.papers.serving import sampler, speculation, trials
from allyouneed.papers.serving.experiment import EXPERIMENT
from allyouneed.papers.serving.speculation import DraftToken, ModelDraftSession

from .sabotage import Breakage, Sabotage, as_if, tried

Trials = list[TrialResult]
SMOKE = EXPERIMENT.scales["smoke"].arms
# Long enough for queues to form, and for a draft that has learned something.
QUEUED = {"requests": 70, "longest": 120, "max_num_sequences": 8, "max_batched_tokens": 32, "checked": 0}
SATURATED = {arm: replace(SMOKE[arm], **QUEUED) for arm in SMOKE if "saturated" in arm}
LOADS = {arm: replace(SMOKE[arm], **QUEUED) for arm in SMOKE if "loads" in arm}
MEMORY = {arm: replace(SMOKE[arm], requests=60) for arm in ("blocks_of_16", "blocks_of_2048")}
DRAFT = replace(SMOKE["draft"], requests=4, new_tokens=16, steps=30, step_tokens=256, draft_tokens=(7,))


def both(arms: Mapping[str, Any], breaking: Mapping[tuple[Any, str], Any], seeds: int = 3) -> tuple[Trials, Trials]:
    """Run arms whole, and with parts of the room replaced."""
    whole = tried(EXPERIMENT, arms, seeds)
    with pytest.MonkeyPatch.context() as patch:
        for (holder, name), part in breaking.items():
            patch.setattr(holder, name, part)
        return whole, tried(EXPERIMENT, arms, seeds)


def accept_all(logits: torch.Tensor, draft_tokens: Sequence[DraftToken], *_: Any) -> list[int]:
    return [*(one.token for one in draft_tokens), int(logits[-1].argmax())]


def one_at_most(self: ModelDraftSession, tokens: Sequence[int], most: int) -> list[DraftToken]:
    return PROPOSE(self, tokens, most)[:1]


PROPOSE = speculation.ModelDraftSession.propose
STATIC = dict.fromkeys(("static", "continuous"), trials.SCHEDULERS["static"])
UNCHECKED = {(sampler, "accept"): accept_all}


def blocks_of_a_context() -> tuple[Trials, Trials]:
    """Give both arms blocks of a whole context."""
    whole = tried(EXPERIMENT, MEMORY, 3)
    return whole, tried(EXPERIMENT, dict.fromkeys(MEMORY, MEMORY["blocks_of_2048"]), 3)


SABOTAGES: dict[str, Sabotage] = {
    "chunked_prefill_pause": as_if("prompts_in_chunks", "prompts_whole"),
    "chunked_prefill_price": as_if("prompts_in_chunks", "prompts_whole"),
}
BROKEN: dict[str, Breakage] = {
    "greedy_texts_unchanged": lambda: both(
        {**{arm: SMOKE[arm] for arm in SMOKE if "saturated" in arm or "prompts" in arm}, "draft": DRAFT}, UNCHECKED, 1
    ),
    "saturated_tokens_a_step": lambda: both(SATURATED, {(trials, "SCHEDULERS"): STATIC}),
    "highest_load": lambda: both(LOADS, {(trials, "SCHEDULERS"): STATIC}),
    "sequences_at_once": blocks_of_a_context,
    "same_distribution": lambda: both({"draft": replace(SMOKE["draft"], samples=300)}, UNCHECKED, 1),
    "tokens_a_step_by_the_formula": lambda: both({"draft": DRAFT}, {(ModelDraftSession, "propose"): one_at_most}),
}
