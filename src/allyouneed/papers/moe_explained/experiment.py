"""Do experts learn in fewer steps at equal operations, and what do capacity, z-loss and upcycling do?

Laptop: about 9 minutes on 2 cores. With one expert a token a Switch reaches the dense model's loss before it does; a
smaller capacity drops more tokens and needs less memory; a mixture that begins as a trained dense model ends below one
that begins anew.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Experiment, Scale, Trend

from .figure import figure
from .trials import MoeExplainedConfig, trial

FACTORS = {"capacity_1": 1.0, "capacity_1.25": 1.25, "capacity_2": 2.0}


def arms(
    base: MoeExplainedConfig, short: int, dense: float, switch: float, scratch: float, upcycled: float
) -> dict[str, MoeExplainedConfig]:
    """Give the dense model, Switches of three capacities and with the z-loss, and mixtures begun anew and from dense.

    Args:
        base: what all have alike.
        short: steps of the mixtures begun anew, of the upcycled ones after their dense training, and of the Switches
            that try capacities.
        dense: learning rate of the dense model; the best of a grid, as those that follow.
        switch: of the Switches, which differ from one another in one number.
        scratch: of the mixtures that begin anew.
        upcycled: of those that begin as a dense model.
    """
    base = replace(base, learning_rate=switch, dense_rate=dense)
    return {
        "dense": replace(base, kind="dense", learning_rate=dense),
        "switch": base,
        "switch_z": replace(base, z=0.001),
        **{arm: replace(base, capacity_factor=factor, steps=short) for arm, factor in FACTORS.items()},
        "scratch": replace(base, kind="scratch", steps=short, learning_rate=scratch),
        "upcycled": replace(base, kind="upcycled", steps=short, learning_rate=upcycled),
    }


TINY = "Two layers, 25 thousand dense parameters and a million bytes stand for billions of parameters and words."

CLAIMS = (
    Claim(
        id="switch_needs_fewer_steps",
        statement=(
            "With one of 8 experts for each token, and so the operations of the dense model, a Switch reaches the loss "
            "that the dense model ends near in at least a twentieth fewer steps."
        ),
        source="Sections 'TL;DR' and 'Switch Transformers'",
        paper_value="4 times as fast as T5-XXL (of Switch Transformers)",
        test=Better("steps_to_target", arm="switch", than="dense", margin=0.05, relative=True),
        scale_gap=(
            f"{TINY} Steps are compared and not seconds: on a CPU sorting tokens and changing eight times the weights "
            "cost more time than operations tell (see step_seconds among the trials' costs)."
        ),
    ),
    Claim(
        id="capacity_drops_fewer",
        statement="The larger the capacity factor, the fewer tokens are dropped.",
        source="Section 'Switch Transformers' (a factor above 1 is a buffer)",
        paper_value=None,
        test=Trend("dropped", arms_at=FACTORS, law="linear", below=0.0),
        scale_gap=TINY,
    ),
    Claim(
        id="capacity_costs_memory",
        statement="The larger the capacity factor, the more memory a training step needs that computes all slots.",
        source="Section 'Capacity Factor and Communication costs'",
        paper_value=None,
        test=Trend("step_megabytes", arms_at=FACTORS, law="linear", above=0.0),
        scale_gap=(
            f"{TINY} Experts here take any number of tokens; slots, as compiled programs have them, are computed for "
            "this measurement alone."
        ),
    ),
    Claim(
        id="z_loss_lowers_logits",
        statement="With the z-loss, weighted as in ST-MoE, the router's largest logit is smaller on the average.",
        source="Section 'Stabilizing training with router Z-loss'",
        paper_value=None,
        test=Better("logit", arm="switch_z", than="switch", relative=True),
        scale_gap=f"{TINY} Nothing is unstable at this size, in 32 bits: what small logits are good for is not seen.",
    ),
    Claim(
        id="z_loss_costs_no_quality",
        statement="With the z-loss the held-out loss is higher by less than 0.02 nats a byte.",
        source="Section 'Stabilizing training with router Z-loss'",
        paper_value=None,
        test=Better("loss", arm="switch_z", than="switch", margin=-0.02),
        scale_gap=TINY,
    ),
    Claim(
        id="upcycling_beats_scratch",
        statement=(
            "After as many steps, a mixture whose experts began as a trained dense model's layers ends at least 0.02 "
            "nats a byte below one that began anew."
        ),
        source="Not in the post: Komatsuzaki et al. 2022 (Sparse Upcycling), abstract",
        paper_value=None,
        test=Better("loss", arm="upcycled", than="scratch", margin=0.02),
        scale_gap=(
            f"{TINY} What the dense model cost is not counted, as in the claim. Trained long enough, a mixture begun "
            "anew catches up."
        ),
    ),
)

EXPERIMENT = Experiment(
    paper="moe_explained",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                MoeExplainedConfig(
                    "switch",
                    experts=4,
                    dense_steps=2,
                    width=8,
                    hidden=8,
                    layers=1,
                    heads=2,
                    length=8,
                    step_tokens=64,
                    steps=3,
                    evaluations=2,
                    watched_tokens=128,
                    evaluated_tokens=256,
                ),
                2,
                8e-3,
                8e-3,
                8e-3,
                4e-3,
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(MoeExplainedConfig("switch"), 250, 2.4e-2, 2.4e-2, 2.4e-2, 2.4e-2), seeds=5),
        "gpu": Scale(
            arms(
                MoeExplainedConfig(
                    "switch",
                    dense_steps=1500,
                    target=3.3,
                    width=512,
                    hidden=2048,
                    layers=6,
                    heads=8,
                    length=256,
                    vocabulary=4096,
                    step_tokens=32_768,
                    steps=1500,
                    watched_tokens=131_072,
                    evaluated_tokens=131_072,
                ),
                750,
                1e-3,
                1e-3,
                1e-3,
                5e-4,
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
