"""The claims of RWKV's room can fail."""

from allyouneed.papers.rwkv.experiment import LENGTHS, TOKENS, WRITTEN

from .sabotage import Breakage, Sabotage, as_if, exchanged, given, in_turn

LONGEST = max(WRITTEN, key=lambda arm: WRITTEN[arm])
BROKEN: dict[str, Breakage] = {}
SABOTAGES: dict[str, Sabotage] = {
    "loss_equals_transformer": as_if("rwkv", "transformer"),
    "loss_no_worse": exchanged("rwkv", "transformer"),
    "state_is_constant": in_turn(*(given(arm, numbers_over_5DL="transformer_bytes") for arm in WRITTEN)),
    "cache_grows": in_turn(*(given(arm, transformer_bytes="rwkv_bytes") for arm in TOKENS)),
    "token_time_is_constant": in_turn(*(given(arm, rwkv_over_begun="transformer_over_begun") for arm in TOKENS)),
    "long_text_is_faster": given(LONGEST, seconds_over_transformer=1.0),
    "training_memory_is_linear": in_turn(*(given(arm, rwkv_megabytes="transformer_megabytes") for arm in LENGTHS)),
    "training_time_is_linear": in_turn(*(given(arm, rwkv_milliseconds="transformer_milliseconds") for arm in LENGTHS)),
}
