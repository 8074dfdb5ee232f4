"""Are experts worth their memory at equal operations, and what do upcycling, the z-loss and capacity do?

Laptop: about 20 minutes on one core. A Switch ends below the dense model of equal operations; a mixture upcycled from
the dense model ends below that model trained on as long, but not below one that began anew; the z-loss keeps the
log-sum-exp small, at a small price.
"""

from dataclasses import replace
from typing import Any

from allyouneed.evidence import Better, Claim, Equivalent, Exact, Experiment, Resolution, Scale

from .figure import figure
from .trials import MoeExplainedConfig, trial

FACTORS = {"capacity_1": 1.0, "capacity_1.25": 1.25}


def arms(base: MoeExplainedConfig, short: int, rates: dict[str, float]) -> dict[str, MoeExplainedConfig]:
    """Give the dense model, Switches with and without z-loss and of two capacities, and what goes on from the dense.

    With the operations of half of the dense training, the dense model is trained on and the upcycled mixture is
    trained; with those of all of it, the mixture that begins anew.

    Args:
        base: a Switch, and what all have alike.
        short: steps of the Switches that try capacities.
        rates: learning rates of dense, switch, continued, upcycled and scratch; the best of a grid, each of its own.
    """
    base = replace(base, dense_rate=rates["dense"], steps=base.dense_steps, learning_rate=rates["switch"])

    def arm(kind: Any, share: float) -> MoeExplainedConfig:
        made = replace(base, kind=kind, learning_rate=rates[kind])
        as_dense = replace(base, kind="dense").operations / made.operations
        return replace(made, steps=max(1, round(share * base.dense_steps * as_dense)))

    return {
        "dense": arm("dense", 1.0),
        "switch": base,
        "switch_z": replace(base, z=0.001),
        "continued": arm("continued", 0.5),
        "upcycled": arm("upcycled", 0.5),
        "scratch": arm("scratch", 1.0),
        **{name: replace(base, capacity_factor=factor, steps=short) for name, factor in FACTORS.items()},
    }


TINY = "Two layers, 25 thousand dense parameters and 1.5 million bytes stand for billions of parameters and words."
UPCYCLING = "Not in the post: Komatsuzaki et al. 2022 (Sparse Upcycling), abstract"
Z_LOSS = "Section 'Stabilizing training with router Z-loss'"
PILOT = "pilot, seeds 1001 and 1002 as recorded and seed 1000 at neighbouring rates"

CLAIMS = (
    Claim(
        id="switch_beats_dense",
        statement=(
            "With one of 8 experts for each token, and so the operations of the dense model, a Switch ends at least "
            "0.02 nats a byte below it after the same 1.5 million bytes."
        ),
        source="Sections 'TL;DR' and 'Switch Transformers'",
        paper_value="4 times as fast as T5-XXL (of Switch Transformers)",
        test=Better("loss", arm="switch", than="dense", margin=0.02),
        scale_gap=(
            f"{TINY} Operations are equal but for the router's scores (1.6 %); seconds are not, on a CPU (see "
            "step_seconds among the trials' costs). The dense model is short of parameters, where experts help."
        ),
        resolution=Resolution(0.025, 5, PILOT),
        sabotage="The Switch's trials are those of the dense model, as if it had one expert.",
    ),
    Claim(
        id="upcycled_beats_continued",
        statement=(
            "With as many further operations, half of those of the dense training, a mixture of copies of the dense "
            "model's layers ends at least 0.02 nats a byte below the dense model that is trained on."
        ),
        source=UPCYCLING,
        paper_value="significantly better on SuperGLUE with about 50 % of the dense model's cost",
        test=Better("loss", arm="upcycled", than="continued", margin=0.02),
        scale_gap=f"{TINY} Held-out loss is compared, and not what fine-tuning makes of it.",
        resolution=Resolution(0.01, 5, PILOT),
        sabotage="The upcycled trials are those of the dense model that is trained on.",
    ),
    Claim(
        id="upcycled_beats_new_mixture",
        statement=(
            "Upcycled with half of the operations of the dense training, a mixture ends below one that began anew and "
            "was given all of them."
        ),
        source=UPCYCLING,
        paper_value="better than sparse models from scratch at 100 % of the dense model's cost",
        test=Better("loss", arm="upcycled", than="scratch"),
        scale_gap=f"{TINY} What the dense model cost is not counted, as in the claim.",
        resolution=Resolution(0.01, 5, PILOT),
        sabotage="The two arms are exchanged.",
    ),
    Claim(
        id="z_loss_shrinks_log_sum_exp",
        statement="With the z-loss, weighted as in ST-MoE, the mean squared log-sum-exp falls by four fifths or more.",
        source=Z_LOSS,
        paper_value=None,
        test=Better("z_loss", arm="switch_z", than="switch", margin=0.8, relative=True),
        scale_gap=f"{TINY} Nothing is unstable at this size, in 32 bits: what small logits are good for is not seen.",
        resolution=Resolution(0.01, 5, PILOT),
        sabotage="The z-loss is left out of what is trained on.",
    ),
    Claim(
        id="z_loss_spares_choices_in_bf16",
        statement="With the z-loss, rounding logits to bfloat16 leaves fewer tokens without a clear choice of expert.",
        source=f"{Z_LOSS} (it reduces roundoff errors)",
        paper_value=None,
        test=Better("bf16_ties", arm="switch_z", than="switch", relative=True),
        scale_gap=f"{TINY} Logits are near 4 without the z-loss: those that need it are many times larger.",
        resolution=Resolution(0.3, 5, PILOT),
        sabotage="With the z-loss each token without a clear choice is counted twenty times.",
    ),
    Claim(
        id="z_loss_keeps_quality",
        statement="With the z-loss the held-out loss is the same within 0.03 nats a byte.",
        source=f"{Z_LOSS} (without quality degradation)",
        paper_value=None,
        test=Equivalent("loss", arm="switch_z", to="switch", tolerance=0.03),
        scale_gap=TINY,
        resolution=Resolution(0.005, 5, PILOT),
        sabotage="The trials with z-loss are those of the dense model.",
    ),
    Claim(
        id="buffer_drops_fewer",
        statement=(
            "After 250 steps, a Switch with a capacity factor of 1.25 drops at least a third fewer tokens than with 1."
        ),
        source="Section 'Switch Transformers' (a factor above 1 is a buffer)",
        paper_value=None,
        test=Better("dropped", arm="capacity_1.25", than="capacity_1", margin=1 / 3, relative=True),
        scale_gap=TINY,
        resolution=Resolution(0.15, 5, PILOT),
        sabotage="Every expert's capacity is that of a factor of 1.",
    ),
    Claim(
        id="expert_choice_is_even",
        statement=(
            "Where experts choose among the tokens of a trained Switch, by its scores, each expert takes equally many."
        ),
        source="Not in the post: Zhou et al. 2022 (Expert Choice), section 3",
        paper_value="perfect load balance by design",
        test=Exact("expert_choice_largest_load", arms=("switch", "switch_z"), equals=1.0),
        scale_gap="The routers were trained for tokens that choose. Which tokens are left without an expert is told.",
        resolution=Resolution(0.0, 5, "an identity"),
        sabotage="Tokens choose.",
    ),
)

RATES = {"dense": 2.4e-2, "switch": 1.6e-2, "continued": 4e-3, "upcycled": 8e-3, "scratch": 2.4e-2}
GPU_RATES = {"dense": 1e-3, "switch": 1e-3, "continued": 3e-4, "upcycled": 5e-4, "scratch": 1e-3}

EXPERIMENT = Experiment(
    paper="moe_explained",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                MoeExplainedConfig(
                    kind="switch",
                    experts=4,
                    dense_steps=4,
                    width=8,
                    hidden=8,
                    layers=1,
                    heads=2,
                    length=8,
                    step_tokens=64,
                    evaluations=2,
                    watched_tokens=128,
                    evaluated_tokens=256,
                ),
                2,
                RATES,
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(MoeExplainedConfig(kind="switch"), 250, RATES), seeds=5),
        "gpu": Scale(
            arms(
                MoeExplainedConfig(
                    kind="switch",
                    dense_steps=1500,
                    width=512,
                    hidden=2048,
                    layers=6,
                    heads=8,
                    length=256,
                    vocabulary=4096,
                    step_tokens=32_768,
                    watched_tokens=131_072,
                    evaluated_tokens=131_072,
                ),
                250,
                GPU_RATES,
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
