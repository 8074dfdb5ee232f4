"""Does layer norm make an LSTM learn in fewer steps, does it bear small batches, and is Table 1 right?

Laptop: about 9 minutes on 2 cores. The layer-normalised LSTM reaches the plain one's loss in about a third of the
steps. At batches of 4 the classifier with batch norm errs half as often again as the one with layer norm.
"""

from collections.abc import Mapping
from dataclasses import replace

from allyouneed.evidence import Better, Claim, Equivalent, Exact, Experiment, Scale

from .figure import figure
from .invariances import TABLE_1
from .trials import LayerNormConfig, Norm, trial


def arms(
    base: LayerNormConfig, large: int = 128, tuned: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, LayerNormConfig]:
    """Give three LSTMs, three classifiers at each of two batch sizes, and the rows of Table 1.

    Args:
        base: what the arms share; its own batch is that of the LSTMs.
        large: the larger batch of the classifiers.
        tuned: for an arm's name, the settings that are its own.
    """
    norms: tuple[Norm, ...] = ("none", "batch", "layer")
    chosen = {name: replace(base, norm=norm) for name, norm in zip(("lstm", "bn_lstm", "ln_lstm"), norms, strict=True)}
    for size, batch in (("large", large), ("4", 4)):
        chosen |= {f"{norm}_{size}": replace(base, task="digits", norm=norm, batch=batch) for norm in norms}
    chosen = {arm: replace(config, **(tuned or {}).get(arm, {})) for arm, config in chosen.items()}
    tables: tuple[Norm, ...] = ("batch", "weight", "layer")
    return chosen | {f"table_{norm}": replace(base, task="table", norm=norm) for norm in tables}


TUNED: Mapping[str, Mapping[str, float]] = {
    "lstm": {"learning_rate": 8e-3},
    "bn_lstm": {"learning_rate": 32e-3},
    "ln_lstm": {"learning_rate": 16e-3},
    "none_large": {"learning_rate": 4e-3},
    "batch_large": {"learning_rate": 2e-3},
    "layer_large": {"learning_rate": 2e-3},
    "none_4": {"learning_rate": 1e-3},
    "batch_4": {"learning_rate": 1e-3},
    "layer_4": {"learning_rate": 3e-4},
}
"""What is each arm's own at the laptop scale: the best of one grid for all (see the readme)."""

TINY_LSTM = "One layer of 160 units and 0.6 million characters stand for the paper's models, which trained for days."
TINY_DIGITS = "Layers of 256 units and one pass over the images stand for the paper's 1,000 units and 65 passes."
DRAWN = "Nothing: the identity is tried on random weights and data, without an epsilon."

COLUMNS = {
    "weight_matrix_scaled": "scaling the weight matrix",
    "weight_matrix_shifted": "shifting all its rows alike",
    "weight_vector_scaled": "scaling one unit's weights",
    "data_scaled": "scaling the data",
    "data_shifted": "shifting the data",
    "case_scaled": "scaling one case",
}
"""The columns of Table 1, in words."""


def table_claims(norm: str) -> tuple[Claim, Claim]:
    """Give the two claims of a row of Table 1: what changes nothing, and what changes something."""
    unchanged = ", ".join(words for column, words in COLUMNS.items() if column in TABLE_1[norm])
    changed = ", ".join(words for column, words in COLUMNS.items() if column not in TABLE_1[norm])
    arm = f"table_{norm}"
    return (
        Claim(
            id=f"{norm}_norm_invariant",
            statement=f"The output of {norm} norm does not change with: {unchanged}.",
            source="Table 1; section 5.1",
            test=Exact("invariant_most", arms=(arm,), at_most=1e-9),
            scale_gap=DRAWN,
            sabotage="what changes something is taken for what changes nothing",
        ),
        Claim(
            id=f"{norm}_norm_not_invariant",
            statement=f"The output of {norm} norm changes, in every draw, with: {changed}.",
            source="Table 1",
            test=Exact("other_least", arms=(arm,), at_least=0.1),
            scale_gap=DRAWN,
            sabotage="what changes nothing is taken for what changes something",
        ),
    )


CLAIMS = (
    Claim(
        id="fewer_steps",
        statement="An LSTM with layer norm reaches a given held-out loss in at least a tenth fewer steps than without.",
        source="Figures 1, 2 and 4; sections 6.1, 6.2 and 6.4",
        paper_value="60 % of the time (order embeddings, a GRU), "
        "almost twice as fast (DRAW, norm on the read-out only)",
        test=Better("steps_to_target", arm="ln_lstm", than="lstm", margin=0.1, relative=True),
        scale_gap=f"{TINY_LSTM} The loss to reach is the plain LSTM's own, near the end of its training.",
        sabotage="the norm is in the other arm",
    ),
    Claim(
        id="lower_loss",
        statement="After as many steps, the held-out loss of an LSTM is lower with layer norm than without.",
        source="Figures 2 and 4, section 6.4",
        paper_value="82.09 against 82.36 nats (DRAW, norm on the read-out only, 200 epochs)",
        test=Better("loss", arm="ln_lstm", than="lstm"),
        scale_gap=f"{TINY_LSTM} The paper compares ends; here the plain LSTM is still learning.",
        sabotage="the norm is in the other arm",
    ),
    Claim(
        id="lower_than_batch_norm",
        statement="After as many steps, the held-out loss of an LSTM is lower with layer norm than with batch norm.",
        source="Figure 2, section 6.2",
        test=Better("loss", arm="ln_lstm", than="bn_lstm"),
        scale_gap=f"{TINY_LSTM} All sequences have one length here, which spares batch norm what it finds hardest.",
        sabotage="the norms are exchanged",
    ),
    Claim(
        id="layer_norm_bears_small_batches",
        statement="At batches of 4, layer norm's test error is at least a tenth below batch norm's.",
        source="Figure 6, lower right; section 6.6",
        test=Better("error", arm="layer_4", than="batch_4", margin=0.1, relative=True),
        scale_gap=TINY_DIGITS,
        sabotage="the norms are exchanged",
    ),
    Claim(
        id="layer_norm_at_any_batch",
        statement="Layer norm's test error at batches of 4 is at most 1 percentage point above that at large ones.",
        source="Figure 6; section 6.6",
        test=Better("error", arm="layer_4", than="layer_large", margin=-0.01),
        scale_gap=f"{TINY_DIGITS} With as many images, small batches take more steps.",
        sabotage="the small batches are normalised over the batch",
    ),
    Claim(
        id="equal_at_large_batches",
        statement="At batches of 128, layer and batch norm end within half a percentage point of test error.",
        source="Figure 6, lower left",
        test=Equivalent("error", arm="layer_large", to="batch_large", tolerance=0.005),
        scale_gap=f"{TINY_DIGITS} In its first ten epochs batch norm is ahead there too.",
        sabotage="the arm without batch norm has its error in batches of 4",
    ),
    *table_claims("layer"),
)

EXPERIMENT = Experiment(
    paper="layer_norm",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                LayerNormConfig(
                    "language",
                    "none",
                    batch=4,
                    evaluations=2,
                    length=6,
                    width=8,
                    hidden=8,
                    steps=3,
                    scored=96,
                    units=8,
                    images=48,
                    draws=3,
                ),
                large=16,
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(LayerNormConfig("language", "none"), tuned=TUNED), seeds=5),
        "gpu": Scale(
            arms(
                LayerNormConfig(
                    "language",
                    "none",
                    batch=64,
                    learning_rate=2e-3,
                    length=128,
                    width=256,
                    hidden=1024,
                    steps=1000,
                    scored=65_536,
                    target=1.4,
                    units=1000,
                    images=150_000,
                ),
                tuned={f"{norm}_4": {"learning_rate": 3e-4} for norm in ("none", "batch", "layer")},
            ),
            seeds=3,
            device="cuda",
        ),
    },
)
