"""Does perplexity fall as experts are added at equal operations a token, and do they collapse without balancing losses?

Laptop: about 4 minutes on 2 cores. From 4 to 32 experts perplexity falls by about 4 %. Without the two losses
the busiest of 32 experts carries several times the mean load.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Experiment, Scale, Trend

from .figure import figure
from .trials import MoeConfig, trial

EXPERTS = (4, 8, 16, 32)


def arms(base: MoeConfig, dense_rate: float, *further: int) -> dict[str, MoeConfig]:
    """Give mixtures of more and more experts, the largest of them without its losses, and a dense layer in their place.

    Args:
        base: what all have alike.
        dense_rate: the learning rate of the dense layer's arm, the best of the same grid.
        further: numbers of experts beyond those that the claims are about.
    """
    mixtures = {f"moe_{experts}": replace(base, experts=experts) for experts in (*EXPERTS, *further)}
    unbalanced = replace(base, experts=EXPERTS[-1], importance=0.0, load=0.0)
    return mixtures | {"moe_32_unbalanced": unbalanced, "dense": replace(base, experts=0, learning_rate=dense_rate)}


TINY = (
    "Bytes, a width of 32 and 1.6 million bytes stand for the paper's words, width of 512 and ten passes over 0.8 "
    "billion words."
)

CLAIMS = (
    Claim(
        id="more_experts_lower_perplexity",
        statement="With 4 of n experts for each token, perplexity falls as n grows from 4 to 32, as a power of n.",
        source="Figure 2 (left), Table 7",
        paper_value="test perplexity 45.0 with 4 experts, 39.7 with 32, 35.7 with 256 (an exponent of -0.06)",
        test=Trend(
            "perplexity", arms_at={f"moe_{experts}": float(experts) for experts in EXPERTS}, law="power", below=0.0
        ),
        scale_gap=(
            f"{TINY} Each of many experts sees so little text that much of its capacity is not yet of use. The paper "
            "goes on to 4,096."
        ),
        sabotage="every mixture has 4 experts",
    ),
    Claim(
        id="mixture_beats_dense",
        statement=(
            "At equal operations a token, 32 experts have a perplexity at least 2 % lower than one dense layer as wide "
            "as the 4 experts that are active."
        ),
        source="Table 7, MoE-32 against MoE-1-Wide",
        paper_value="39.7 against 46.1 (other dense models of its cost: 44.7 to 46.0)",
        test=Better("perplexity", arm="moe_32", than="dense", margin=0.02, relative=True),
        scale_gap=f"{TINY} Operations are equal, time is not: see step_seconds among the trials' costs.",
        sabotage="mixture and dense layer are exchanged",
    ),
    Claim(
        id="losses_even_out_importance",
        statement="The two losses lower the coefficient of variation of the experts' importance by more than 0.5.",
        source="Table 6, rows 1 and 4",
        paper_value="3.04 without, 0.06 with both at 0.1 (256 experts)",
        test=Better("importance_variation", arm="moe_32", than="moe_32_unbalanced", margin=0.5),
        scale_gap=f"{TINY} Of 32 experts a coefficient of variation is at most 5.6, of the paper's 256 at most 16.",
        sabotage="training leaves the balancing losses out",
    ),
    Claim(
        id="losses_even_out_load",
        statement="Without the two losses the busiest expert carries over twice the mean load.",
        source="Table 6, row 1",
        paper_value="17.80 times the mean (256 experts)",
        test=Better("largest_load", arm="moe_32_unbalanced", than=2.0, direction="higher"),
        scale_gap=f"{TINY} Of 32 experts with 4 chosen the busiest carries at most 8 times the mean.",
        sabotage="the unbalanced arm has the losses",
    ),
    Claim(
        id="balanced_load_is_even",
        statement="With both losses the busiest expert carries less than 1.5 times the mean load.",
        source="Table 6, row 4",
        paper_value="1.14 times the mean (256 experts)",
        test=Better("largest_load", arm="moe_32", than=1.5),
        scale_gap=TINY,
        sabotage="training leaves the balancing losses out",
    ),
    Claim(
        id="balance_lowers_perplexity",
        statement="With the two losses perplexity is lower than without.",
        source="Table 6, rows 1 and 4",
        paper_value="35.6 with both at 0.1, 39.8 with none (256 experts)",
        test=Better("perplexity", arm="moe_32", than="moe_32_unbalanced", relative=True),
        scale_gap=(
            f"{TINY} In so short a training the few experts that a collapsed gate uses may learn faster, since each "
            "sees more of the text."
        ),
        sabotage="the losses are in the other arm",
    ),
    Claim(
        id="more_experts_hardly_slower",
        statement="A training step with 32 experts takes at most 1.6 times as long as one with 4.",
        source="Section 1.1 (minor losses in computational efficiency); Table 7, last column; appendix C.1",
        paper_value="0.87 TFLOPS a GPU with 32 experts, dense 1.07 to 1.29 (4 experts kept 4 of 16 GPUs busy: 0.52)",
        test=Better("step_seconds", arm="moe_32", than="moe_4", margin=-0.6, relative=True),
        scale_gap=(
            "One process has all experts here, which are so small that calls and the optimiser, which has eight times "
            "the weights to change, are much of the step."
        ),
        sabotage="every expert computes every token",
    ),
)

EXPERIMENT = Experiment(
    paper="moe",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                MoeConfig(
                    0, expert_hidden=4, width=8, length=8, vocabulary=256, step_tokens=64, steps=3, evaluated_tokens=512
                ),
                3.2e-2,
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(MoeConfig(0), 6.4e-2), seeds=5),
        "gpu": Scale(
            arms(
                MoeConfig(
                    0,
                    expert_hidden=1024,
                    width=512,
                    length=64,
                    vocabulary=4096,
                    step_tokens=32_768,
                    steps=1500,
                    learning_rate=2e-3,
                    dropout=0.1,
                    evaluated_tokens=131_072,
                ),
                2e-3,
                256,
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
