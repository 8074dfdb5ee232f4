"""Is LLaMA's block better than GPT-2's at equal compute, and does a smaller model trained longer pass a larger one?

Laptop: about 8 minutes on 2 cores. LLaMA's block ends a tenth of a nat a byte or more below GPT-2's. The medium model
ends below the large one, which can afford a third of its text.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Experiment, Scale

from .figure import figure
from .trials import Llama1Config, trial


def arms(
    base: Llama1Config, widths: tuple[int, int, int], rates: tuple[float, float, float], gpt2_rate: float
) -> dict[str, Llama1Config]:
    """Give LLaMA in three sizes, and GPT-2 in the largest, with the compute of `base`; the others with half of it too.

    Args:
        base: what all have alike.
        widths: of the small, the medium and the large model.
        rates: the best learning rate of each, from the same grid.
        gpt2_rate: that of GPT-2.
    """
    small, medium, large = (
        replace(base, width=width, learning_rate=rate) for width, rate in zip(widths, rates, strict=True)
    )
    large = replace(large, equal=True)
    half = base.compute / 2
    return {
        "small_half": replace(small, compute=half),
        "small_whole": small,
        "medium_half": replace(medium, compute=half),
        "medium_whole": medium,
        "large_whole": large,
        "gpt2_whole": replace(large, block="gpt2", learning_rate=gpt2_rate),
    }


TINY = (
    "Bytes and 10 to 100 thousand parameters stand for the paper's word pieces and 6.7 to 65.2 billion, and what "
    "one of its accelerators computes within a second for three weeks of two thousand."
)
NATS = 0.02
"""A difference of held-out losses that counts, in nats a byte."""

CLAIMS = (
    Claim(
        id="block_beats_gpt2",
        statement=(
            "With as many parameters and as much training compute, a model of LLaMA's blocks ends at least 0.02 nats "
            "a byte below one of GPT-2's."
        ),
        source="not in the paper (section 2.2 lists the changes, each taken over from another model)",
        paper_value=None,
        test=Better("loss", arm="large_whole", than="gpt2_whole", margin=NATS),
        scale_gap=(
            f"{TINY} The paper compares no blocks. So short a training shows which block learns faster; how much of it "
            "is left in a long one is not seen. Compute is counted in matrix products: on a CPU LLaMA's norm, gate and "
            "rotation take longer than that count says (see step_seconds among the trials' costs)."
        ),
        sabotage="the blocks are exchanged",
    ),
    Claim(
        id="smaller_passes_larger",
        statement=(
            "With the same compute, the medium model, trained on more text, ends at least 0.02 nats a byte below the "
            "large one."
        ),
        source="Section 1; Figure 1, read across at equal compute",
        paper_value=(
            "training loss 1.73 of 13B after 1.0T tokens against 1.79 of 65B after 0.2T, in the middle of its schedule "
            "(read off the figure)"
        ),
        test=Better("loss", arm="medium_whole", than="large_whole", margin=NATS),
        scale_gap=f"{TINY} Here each model's schedule ends where its compute does, which favours the large one.",
        sabotage="both take as many steps, whatever a step costs",
    ),
    Claim(
        id="smallest_is_past_its_point",
        statement=(
            "The small model is trained past its compute-optimal point: with half of the compute, the medium one is "
            "already better."
        ),
        source="not in the paper, which takes it from Hoffmann et al. (section 1: 10B on 200B tokens; 7B has 1T)",
        paper_value=None,
        test=Better("loss", arm="medium_half", than="small_half"),
        scale_gap=f"{TINY} The point is found by comparing sizes at equal compute, and not by a fitted law.",
        sabotage="the sizes are exchanged",
    ),
    Claim(
        id="smallest_goes_on_improving",
        statement="From there on it still improves: trained twice as long, it ends at least 0.02 nats a byte lower.",
        source="Section 1; Figure 1",
        paper_value="training loss of 7B: 1.95 after 0.2T tokens, 1.80 after 1.0T (read off the figure)",
        test=Better("loss", arm="small_whole", than="small_half", margin=NATS),
        scale_gap=(
            f"{TINY} The paper's curve is one training, whose falling learning rate is part of the improvement; here "
            "both trainings end on their own schedule."
        ),
        sabotage="twice the compute buys no more steps",
    ),
)

EXPERIMENT = Experiment(
    paper="llama1",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                Llama1Config(
                    "llama", 48, 0.0006, layers=1, head_width=6, length=16, step_tokens=128, evaluated_tokens=768
                ),
                (12, 24, 48),
                (8e-3, 8e-3, 8e-3),
                8e-3,
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(Llama1Config("llama", 48, 0.4), (12, 24, 48), (32e-3, 16e-3, 16e-3), 16e-3), seeds=5),
        "gpu": Scale(
            arms(
                Llama1Config(
                    "llama",
                    1024,
                    1800.0,
                    layers=8,
                    head_width=64,
                    length=256,
                    vocabulary=4096,
                    step_tokens=8192,
                    evaluated_tokens=196_608,
                ),
                (256, 512, 1024),
                (2e-3, 1e-3, 5e-4),
                1e-3,
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
