"""The claims of FlashAttention's room can fail."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from allyouneed.evidence import TrialResult
from allyouneed.papers.flash_attention import trials
from allyouneed.papers.flash_attention.experiment import EXPERIMENT, LENGTHS, LONGEST, MEMORY, SHARES, SHORT
from allyouneed.papers.flash_attention.figure import BLOCKS

from .sabotage import Breakage, Sabotage, as_if, given, in_turn, tried

EXACTNESS = {"exactness": replace(EXPERIMENT.scales["smoke"].arms["exactness"], cases=8)}


@cache
def without_masks() -> tuple[list[TrialResult], list[TrialResult]]:
    """Let tiles see what the mask hides."""
    whole, attention = tried(EXPERIMENT, EXACTNESS, 2), trials.flash_attention

    def unmasked(*inputs: Any, attn_mask: Any = None, **options: Any) -> Any:
        return attention(*inputs, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "flash_attention", unmasked)
        return whole, tried(EXPERIMENT, EXACTNESS, 2)


BROKEN: dict[str, Breakage] = {"exact_output": without_masks, "exact_gradients": without_masks}
SABOTAGES: dict[str, Sabotage] = {
    "memory_is_linear": in_turn(*(given(arm, tiled_megabytes="plain_megabytes") for arm in LENGTHS)),
    "accesses_fall_with_memory": in_turn(*(as_if(arm, "counted") for arm in MEMORY if arm != "counted")),
    "figure_2_large_blocks": as_if(BLOCKS[3], BLOCKS[0]),
    "sparse_accesses": in_turn(*(given(arm, accesses_over_dense=1.0) for arm in SHARES)),
    "faster_at_length": as_if(LONGEST, SHORT),
    "faster_when_short": as_if(SHORT, LONGEST),
}
