"""Does accuracy rise with the examples in the prompt, and more steeply for larger models?

Laptop: about 19 minutes of trials, 10 on 2 cores. With 16 examples SmolLM2 sorts a third of questions by type, one
in twenty with none. With seven examples of invented tasks our models get from 41 % right (10 thousand parameters) to
66 % (150 thousand). Tasks at their floor or ceiling (science, sums, scrambled words, our models on BIG-bench) are
measured and drawn, and no claim is made of them.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Experiment, Scale, Trend

from .figure import figure
from .trials import FewShotConfig, trial

SHOTS = {"shots_0": 0.0, "shots_1": 1.0, "shots_4": 2.321928, "shots_16": 4.087463}
"""log2(1 + examples), by arm of the published model: Figure 1.2 has such an axis."""
MAPPINGS = {"mappings_1": 1.0, "mappings_4": 4.0, "mappings_16": 16.0}
MIXTURE = {"mixture_1": 1.0, "mixture_3": 3.0, "mixture_10": 10.0}
"""Parameters in units of the smallest model's, by arm; the true ones differ by up to a tenth."""

Shape = tuple[int, int, int, float]
"""Layers, width, heads and learning rate."""


def arms(
    published: FewShotConfig, mappings: FewShotConfig, mixture: FewShotConfig, shapes: tuple[Shape, ...]
) -> dict[str, FewShotConfig]:
    """Give the published model with each number of examples, and our own models of each size."""
    chosen = {arm: replace(published, shots=int(arm.removeprefix("shots_"))) for arm in SHOTS}
    own = [(arm, mappings) for arm in MAPPINGS] + [(arm, mixture) for arm in MIXTURE]
    for (arm, base), (layers, width, heads, rate) in zip(own, shapes, strict=True):
        chosen[arm] = replace(base, layers=layers, width=width, heads=heads, learning_rate=rate)
    return chosen


SMALL = (
    "SmolLM2-135M-Instruct, of the size of the paper's smallest model, trained on far more text and to follow "
    "instructions, which the paper's models were not; 20 questions a task and seed, up to 16 examples."
)
TINY = (
    "Models of 10 to 150 thousand parameters, trained on under a million tokens, stand for 125 million to 175 billion."
)


def rises(metric: str) -> Trend:
    """Test that the published model's accuracy rises with the logarithm of the number of examples."""
    return Trend(metric, SHOTS, law="linear", above=0.0)


CLAIMS = (
    Claim(
        id="question_types_rise",
        statement="Sorting questions into 13 types, accuracy rises with the number of examples.",
        source="not in the paper (another task than Figure 1.2, its line without a prompt in words)",
        paper_value="0 to about 66 % with 0 to some 50 examples at 175B, 0 to 4 % at 1.3B (symbol insertion, read off)",
        test=rises("question_type"),
        scale_gap=f"{SMALL} Another task than the figure's, of which small models learn something.",
        sabotage="the numbers of examples in reverse order",
    ),
    Claim(
        id="invented_tasks_are_learned",
        statement="On invented tasks held out of training, the largest model's accuracy rises with examples.",
        source="Section 3.9, Figure 1.2",
        paper_value="0 to about 66 % with 0 to some 50 examples at 175B (symbol insertion, read off)",
        test=Better("slope", arm="mappings_16", than=0.0, direction="higher"),
        scale_gap=f"{TINY} Which digit stands for which of three letters is all there is to learn.",
        sabotage="digits in no relation to their letters",
    ),
    Claim(
        id="larger_learn_more_from_examples",
        statement="On invented tasks held out of training, accuracy rises more steeply the larger the model.",
        source="Figures 1.2 and 1.3",
        paper_value="many against no examples: 57 and 43 % at 175B, 25 and 23 % at 125M, 42 tasks (read off)",
        test=Trend("slope", MAPPINGS, law="logarithmic", above=0.0),
        scale_gap=TINY,
        sabotage="the smallest and the largest model exchanged",
    ),
)

EXPERIMENT = Experiment(
    paper="gpt3",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                FewShotConfig(questions=2, written=2),
                FewShotConfig(kind="mappings", documents=4, steps=3, tested=8),
                FewShotConfig(kind="mixture", vocabulary=300, length=192, documents=2, steps=2, questions=2, most=10),
                ((3, 8, 1, 4e-3), (3, 16, 1, 4e-3), (3, 24, 2, 4e-3)) * 2,
            ),
            seeds=1,
        ),
        "laptop": Scale(
            arms(
                FewShotConfig(),
                FewShotConfig(kind="mappings"),
                FewShotConfig(kind="mixture", documents=4, steps=400, questions=50),
                (
                    (3, 16, 1, 8e-3),
                    (3, 32, 1, 2e-3),
                    (3, 64, 1, 2e-3),
                    (3, 24, 1, 8e-3),
                    (3, 48, 2, 4e-3),
                    (3, 96, 3, 4e-3),
                ),
            ),
            seeds=5,
        ),
        "gpu": Scale(
            arms(
                FewShotConfig(questions=250, written=50),
                FewShotConfig(kind="mappings", letters=8, examples=32, documents=256, steps=6000, band=4, tested=8000),
                FewShotConfig(
                    kind="mixture", vocabulary=4096, length=1024, documents=32, steps=3000, questions=250, most=6000
                ),
                (
                    (3, 64, 2, 2e-3),
                    (3, 128, 4, 2e-3),
                    (3, 256, 8, 1e-3),
                    (6, 192, 6, 2e-3),
                    (8, 320, 10, 1e-3),
                    (12, 480, 8, 6e-4),
                ),
            ),
            seeds=5,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
