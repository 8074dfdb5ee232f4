"""How each of the Transformer's claims is broken, and its verdict with it."""

from .sabotage import Breakage, Sabotage, as_if, exchanged

SABOTAGES: dict[str, Sabotage] = {
    "better_than_recurrent": exchanged("transformer", "gru"),
    "faster_than_recurrent": exchanged("transformer", "gru"),
    "one_head_is_worse": exchanged("base", "one_head"),
    "learned_positions_are_as_good": as_if("learned_positions", "base"),
    "positions_are_needed": as_if("no_positions", "base"),
    "smoothing_hurts_perplexity": exchanged("base", "unsmoothed"),
    "smoothing_helps_accuracy": as_if("base", "no_positions"),
    "smoothing_helps_bleu": as_if("base", "no_positions"),
}
BROKEN: dict[str, Breakage] = {}
