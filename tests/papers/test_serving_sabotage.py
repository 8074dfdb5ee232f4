"""The claims of the serving room can fail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from allyouneed.evidence import TrialResult
from allyouneed.papers.serving import Engine, Limits, loads, sampler, speculation, trials
from allyouneed.papers.serving.configs import ServingConfig
from allyouneed.papers.serving.experiment import EXPERIMENT
from allyouneed.papers.serving.speculation import DraftToken, ModelDraftSession

from .sabotage import Breakage, Sabotage, tried

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


def counted(engine: Engine) -> Callable[[], float]:
    """Give a clock in which a step costs as much as ten tokens, so that no other load can change what is found."""
    return lambda: 10.0 * engine.statistics.steps + engine.statistics.computed_tokens


@cache
def prompts_whole_in_both() -> tuple[Trials, Trials]:
    """Give both arms steps that are as long as the longest prompt."""
    small = replace(SMOKE["prompts_in_chunks"], requests=40, prompt=128, long_prompts=0.4, longest=16, checked=0)
    small = replace(small, max_num_sequences=4, max_batched_tokens=16)
    long = small.prompt + small.max_num_sequences
    arms = {"prompts_in_chunks": small, "prompts_whole": replace(small, max_batched_tokens=long)}
    limits = trials.limits_of

    def unlimited(config: ServingConfig) -> Limits:
        return limits(replace(config, max_batched_tokens=long))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loads, "clock_of", counted)
        return both(arms, {(trials, "limits_of"): unlimited})


SABOTAGES: dict[str, Sabotage] = {}
BROKEN: dict[str, Breakage] = {
    "greedy_texts_unchanged": lambda: both(
        {**{arm: SMOKE[arm] for arm in SMOKE if "saturated" in arm or "prompts" in arm}, "draft": DRAFT}, UNCHECKED, 1
    ),
    "saturated_tokens_a_step": lambda: both(SATURATED, {(trials, "SCHEDULERS"): STATIC}),
    "highest_load": lambda: both(LOADS, {(trials, "SCHEDULERS"): STATIC}),
    "chunked_prefill_pause": prompts_whole_in_both,
    "chunked_prefill_price": prompts_whole_in_both,
    "sequences_at_once": blocks_of_a_context,
    "same_distribution": lambda: both({"draft": replace(SMOKE["draft"], samples=300)}, UNCHECKED, 1),
    "tokens_a_step_by_the_formula": lambda: both({"draft": DRAFT}, {(ModelDraftSession, "propose"): one_at_most}),
}
