"""How each claim on BERT is broken, and its verdict with it."""

from .sabotage import Breakage, Sabotage, as_if, exchanged

# The verdicts are of models that have left the plateau of word frequencies, which takes minutes: so on recorded trials.
SABOTAGES: dict[str, Sabotage] = {
    "both_ways_token": exchanged("no_nsp", "left_to_right"),
    "both_ways_sentence": exchanged("no_nsp", "left_to_right"),
    "masking_hardly_matters_fine_tuned": as_if("mask_only", "bert"),
    "only_masks_hurts_features": exchanged("mask_only", "bert"),
    "only_random_hurts_features": exchanged("random_only", "bert"),
}
BROKEN: dict[str, Breakage] = {}
