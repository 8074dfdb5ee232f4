"""Does a ResNet win with few images, do more of them or pre-training close the gap, and do positions find the grid?

Laptop: about 33 minutes of trials, 17 on 2 cores: 0.1 million parameters see 64,000 digits in each training, drawn from
500 to 50,000 different ones. Expect the ResNet ahead throughout, by some 17 points of accuracy with 500 images and by 4
with all; and some 6 points less for a Vision Transformer without positions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from allyouneed.evidence import Better, Claim, Equivalent, Experiment, Scale

from .figure import EVERY, figure
from .trials import VisionConfig, trial

IMAGES: Mapping[str, int] = {"few": 500, "some": 2000, "more": 8000, "all": EVERY}
"""Different images of digits that the arms are trained on."""

TUNED: Mapping[str, Mapping[str, float]] = {
    "few": {"vit_rate": 8e-3, "resnet_rate": 64e-3},
    "some": {"vit_rate": 8e-3, "resnet_rate": 64e-3},
    "pretrained": {"vit_rate": 16e-3, "resnet_rate": 64e-3},
    "none": {"vit_rate": 2e-3},
    "relative": {"vit_rate": 2e-3},
}
"""What is an arm's own at the laptop scale: the best of one grid for all (see the readme), where not the usual."""


def arms(
    base: VisionConfig,
    hybrid: Mapping[str, Any],
    images: Mapping[str, int | None],
    *,
    clothes_steps: int,
    tuned: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, VisionConfig]:
    """Give both models with four numbers of images, with pre-training, and the Vision Transformer in other forms.

    Args:
        base: what the arms share.
        hybrid: settings of the hybrid that are its own, chosen so that an image costs it as much.
        images: of the arms that differ in it; None is all.
        clothes_steps: of pre-training.
        tuned: for an arm's name, the settings that are its own.
    """
    chosen = {arm: replace(base, compared=True, images=count) for arm, count in images.items()}
    chosen["pretrained"] = replace(chosen["few"], clothes_steps=clothes_steps)
    chosen["none"] = replace(base, positions="none")
    chosen["axes"] = replace(base, positions="axes")
    chosen["relative"] = replace(base, positions="relative")
    chosen["hybrid"] = replace(base, patch=1, **hybrid)
    return {arm: replace(config, **(tuned or {}).get(arm, {})) for arm, config in chosen.items()}


TINY = (
    "0.1 million parameters, 16 patches and 64,000 images seen stand for 307 million, 196 patches and hundreds of "
    "millions. The smallest set is of 500 images, seen 128 times."
)
DIGITS_POSITIONS = (
    f"{TINY} Digits are of one size and stand in the middle, so that place tells more than in photographs."
)
CLOTHES = (
    f"{TINY} A grid of 4 × 4 has 120 pairs of patches. Measured after pre-training on clothes, which fill the frame: "
    "digits leave the margin blank, where all positions become alike."
)

CLAIMS = (
    Claim(
        id="transformer_passes",
        statement="With the most images, the Vision Transformer is more accurate than the ResNet.",
        source="Figures 3 and 4; Table 2",
        paper_value="88.55 % (H/14), 87.76 % (L/16) against 87.54 % (BiT-L) on ImageNet after 303 M images",
        test=Better("gap", arm="all", than=0.0),
        scale_gap=f"{TINY} 50,000 images are a two-thousandth of what it takes in Figure 4.",
        sabotage="the models are exchanged",
    ),
    Claim(
        id="pretraining_helps",
        statement="Pre-trained on clothes, the Vision Transformer is more accurate with 500 digits, by over 1 point.",
        source="Figure 3, Table 5",
        paper_value="B/16: 77.9 % from ImageNet alone, 84.0 % from ImageNet-21k",
        test=Better("vit_accuracy", arm="pretrained", than="few", margin=1.0, direction="higher"),
        scale_gap=f"{TINY} Both take as many steps on digits, at their own best rates.",
        sabotage="pre-training is left out",
    ),
    Claim(
        id="positions_matter",
        statement="Without positions, the Vision Transformer is less accurate by over 1 point.",
        source="Table 8",
        paper_value="61.4 against 64.2 % (B/16, ImageNet, 5-shot linear)",
        test=Better("vit_accuracy", arm="all", than="none", margin=1.0, direction="higher"),
        scale_gap=DIGITS_POSITIONS,
        sabotage="both have positions",
    ),
    Claim(
        id="two_dimensions_do_not_matter",
        statement="Positions of two axes are as good as those of a plain row, within 2 points.",
        source="Table 8",
        paper_value="64.0 against 64.2 %",
        test=Equivalent("vit_accuracy", arm="axes", to="all", tolerance=2.0),
        scale_gap=DIGITS_POSITIONS,
        sabotage="the axes are left out",
    ),
    Claim(
        id="positions_find_rows_and_columns",
        statement="Learned positions of patches in one row or column are more alike than those of other patches.",
        source="Figure 7, centre; section 4.5",
        test=Better("in_line", arm="pretrained", than=0.0, direction="higher"),
        scale_gap=CLOTHES,
        sabotage="pre-training is left out",
    ),
    Claim(
        id="hybrid_wins_when_small",
        statement="At a small budget and equal compute, a hybrid is more accurate than the Vision Transformer.",
        source="Figure 5, section 4.4",
        test=Better("vit_accuracy", arm="hybrid", than="all", direction="higher"),
        scale_gap=TINY,
        sabotage="the models are exchanged",
    ),
)

EXPERIMENT = Experiment(
    paper="vit",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                VisionConfig(steps=3, batch=16, width=16, layers=1, heads=2, stages=(4, 4), tested=20),
                {"stem": (4, 4, 4), "layers": 1},
                {"few": 20, "some": 40, "more": 60, "all": None},
                clothes_steps=3,
            ),
            seeds=1,
        ),
        "laptop": Scale(
            arms(
                VisionConfig(),
                {"stem": (8, 16, 28), "layers": 2},
                {**IMAGES, "all": None},
                clothes_steps=1000,
                tuned=TUNED,
            ),
            seeds=5,
        ),
        "gpu": Scale(
            arms(
                VisionConfig(
                    steps=2000,
                    batch=256,
                    vit_rate=1e-3,
                    resnet_rate=2e-3,
                    clothes_vit_rate=1e-3,
                    clothes_resnet_rate=2e-3,
                    patch=4,
                    width=192,
                    layers=6,
                    heads=3,
                    stages=(64, 128, 280),
                    blocks=2,
                ),
                {"stem": (52, 80), "layers": 5},
                {**IMAGES, "all": None},
                clothes_steps=2000,
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
