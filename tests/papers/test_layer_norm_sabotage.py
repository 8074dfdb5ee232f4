"""The claims of layer normalisation's room can fail."""

from .sabotage import Breakage, Sabotage, as_if, exchanged, given

BROKEN: dict[str, Breakage] = {}
SABOTAGES: dict[str, Sabotage] = {
    "fewer_steps": exchanged("ln_lstm", "lstm"),
    "lower_loss": exchanged("ln_lstm", "lstm"),
    "lower_than_batch_norm": exchanged("ln_lstm", "bn_lstm"),
    "layer_norm_bears_small_batches": exchanged("layer_4", "batch_4"),
    "layer_norm_at_any_batch": as_if("layer_4", "batch_4"),
    "equal_at_large_batches": as_if("layer_large", "batch_4"),
    "layer_norm_invariant": given("table_layer", invariant_most="other_least"),
    "layer_norm_not_invariant": given("table_layer", other_least="invariant_most"),
}
