"""Which gradients does a transformer start with, where its norms stand, and which learning rates does it then bear?

Laptop: about 15 minutes on 2 cores, most of it in 120 trainings: four arms at six learning rates with five seeds. The
gradient of the last post-norm layer stays near its size from 4 to 32 layers, that of pre-norm falls about as 1/√depth.
Without warm-up post-norm learns nothing at half of the rates and ends 0.1 nats or more above pre-norm; with warm-up
both end about 0.1 lower.
"""

from dataclasses import replace
from math import log2

from allyouneed.evidence import Better, Claim, Equivalent, Experiment, Scale, Trend

from .figure import DEPTHS, NORMS, PROFILE, figure
from .trials import PreLayerNormConfig, trial

WARMUP = 0.2
"""Share of the steps in which the learning rate rises, where it does."""


def arms(measured: PreLayerNormConfig, trained: PreLayerNormConfig) -> dict[str, PreLayerNormConfig]:
    """Give all arms: gradients at several depths and in a language model, and trainings with and without warm-up."""
    chosen = {}
    for norm in NORMS:
        for depth in DEPTHS:
            chosen[f"{norm}_{depth}"] = replace(measured, norm=norm, task="translation gradients", layers=depth)
        chosen[f"{norm}_language"] = replace(measured, norm=norm, task="language gradients", layers=PROFILE)
    for norm in NORMS:
        chosen[f"{norm}_without_warmup"] = replace(trained, norm=norm, task="training", warmup=0.0)
        chosen[f"{norm}_with_warmup"] = replace(trained, norm=norm, task="training", warmup=WARMUP)
    return chosen


def depths(norm: str) -> dict[str, float]:
    """Name the arms of one placement in order of depth."""
    return {f"{norm}_{depth}": float(depth) for depth in DEPTHS}


NATS = 0.05
"""A difference of held-out losses that counts, in nats a byte: in perplexity, a twentieth."""
WIDTH_GAP = "Width 64 and bytes stand for the paper's 512 and 10,000 word pieces."
TRAINING_GAP = (
    "0.2 million parameters and a few hundred steps on bytes of novels stand for translation and BERT in days of "
    "training: what is compared is how far the arms come in the same steps, not where they would end."
)
APPENDIX_OCTAVES = (PROFILE - 1) / 2 * log2(1.5)
"""How much larger than the first layer's the last layer's post-norm gradient is by appendix F, in doublings."""

CLAIMS = (
    Claim(
        id="post_gradient_keeps_its_size",
        statement=(
            "At initialisation the gradient of a post-norm model's last layer does not depend on the depth: as a power "
            "of 4 to 32 layers, its exponent is within 0.15 of 0."
        ),
        source="Theorem 1, Figure 3(d)",
        paper_value="about 1.6 at 6 to 14 layers on each side",
        test=Trend("last_layer", depths("post"), law="power", above=-0.15, below=0.15),
        scale_gap=f"{WIDTH_GAP} The theorem bounds this gradient from above only; that it is no smaller is measured.",
        sabotage="the norm stands before the sub-layers",
    ),
    Claim(
        id="pre_gradient_falls_with_depth",
        statement=(
            "At initialisation the gradient of a pre-norm model's last layer falls with the depth as 1/√L or faster: "
            "as a power of 4 to 32 layers, its exponent is below −0.4."
        ),
        source="Theorem 1, Figure 3(c)",
        paper_value="0.31 at 6 layers, 0.12 at 14 (read off the figure), which is faster than 1/√L",
        test=Trend("last_layer", depths("pre"), law="power", below=-0.4, least_r_squared=0.8),
        scale_gap=(
            f"{WIDTH_GAP} The bound is −0.4 and not −0.5 because the embeddings count beside the layers: with the "
            "slowest growth that Lemma 2 allows, the exponent over these depths is −0.42."
        ),
        sabotage="the norm stands behind the sub-layers",
    ),
    Claim(
        id="post_gradient_grows_without_a_source",
        statement="So it does in a 6-layer post-norm language model, which has no attention to a source.",
        source="Appendix F, whose estimate is for self-attention and feed-forward layers alone",
        paper_value=None,
        test=Better("octaves", arm="post_language", than=APPENDIX_OCTAVES, direction="higher"),
        scale_gap=f"{WIDTH_GAP} The paper has no figure of the gradients of a model with one stack.",
        sabotage="the model attends to a source",
    ),
    Claim(
        id="pre_gradient_is_level",
        statement=(
            "In a 6–6 pre-norm translation model the gradients of the decoder's first and last layer are alike, to "
            "within a factor of two."
        ),
        source="Section 3.4, Figure 3(b)",
        paper_value="from about 0.56 to 0.30 (read off the figure)",
        test=Equivalent("octaves", arm="pre_6", to=0.0, tolerance=1.0),
        scale_gap=WIDTH_GAP,
        sabotage="the norm stands behind the sub-layers",
    ),
    Claim(
        id="post_lags_without_warmup",
        statement=(
            "Trained without warm-up, each at the best of the same learning rates, post-norm ends at least 0.05 nats a "
            "byte above pre-norm."
        ),
        source="Section 3.2, Figure 2; section 4.2, Figure 4",
        paper_value="8.45 BLEU at best against about 34 (IWSLT14)",
        test=Better("best_loss", arm="pre_without_warmup", than="post_without_warmup", margin=NATS),
        scale_gap=TRAINING_GAP,
        sabotage="the placements are exchanged",
    ),
    Claim(
        id="warmup_helps_post",
        statement="At the best of the same learning rates, post-norm ends lower with warm-up than without.",
        source="Section 3.2, Figure 2",
        paper_value="about 34 BLEU against 8.45 at best (IWSLT14)",
        test=Better("best_loss", arm="post_with_warmup", than="post_without_warmup"),
        scale_gap=TRAINING_GAP,
        sabotage="warm-up is in the other arm",
    ),
    Claim(
        id="pre_without_matches_post_with",
        statement=(
            "At the best of the same learning rates, pre-norm without warm-up ends at most 0.05 nats a byte above "
            "post-norm with warm-up."
        ),
        source="Section 4.2, Figure 4",
        paper_value="about 34 BLEU and a loss of about 4, both (IWSLT14)",
        test=Better("best_loss", arm="pre_without_warmup", than="post_with_warmup", margin=-NATS),
        scale_gap=TRAINING_GAP,
        sabotage="the placements are exchanged",
    ),
    Claim(
        id="pre_needs_no_warmup",
        statement=(
            "At the best of the same learning rates, pre-norm ends at most 0.05 nats a byte higher without warm-up "
            "than with it."
        ),
        source="Abstract; section 4.2 (the warm-up can be removed)",
        paper_value=None,
        test=Better("best_loss", arm="pre_without_warmup", than="pre_with_warmup", margin=-NATS),
        scale_gap=f"{TRAINING_GAP} The paper trains no pre-norm model with warm-up to compare with.",
        sabotage="both arms have warm-up",
    ),
)

EXPERIMENT = Experiment(
    paper="pre_layer_norm",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                PreLayerNormConfig("pre", width=8, hidden=16, length=8, step_tokens=512, models=1, batches=1),
                PreLayerNormConfig(
                    "pre",
                    layers=1,
                    width=8,
                    hidden=16,
                    length=8,
                    step_tokens=64,
                    steps=3,
                    evaluated_tokens=512,
                ),
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(PreLayerNormConfig("pre"), PreLayerNormConfig("pre")), seeds=5),
        "gpu": Scale(
            arms(
                PreLayerNormConfig("pre", width=512, hidden=1024, step_tokens=4096),
                PreLayerNormConfig(
                    "pre",
                    layers=12,
                    width=512,
                    hidden=1024,
                    length=256,
                    step_tokens=16_384,
                    steps=1000,
                    learning_rates=(1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
                    evaluated_tokens=131_072,
                ),
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
