"""Does pre-training as a language model help where labels are few, does each layer carry something, and why attention?

Laptop: 10 to 20 minutes on 2 cores, by how busy they are: a transformer and an LSTM of 0.19 million parameters each
read 0.8 million tokens, with three seeds, and are fine-tuned with 100, 1,000 and 4,000 examples of four tasks, beside a
transformer that is not pre-trained. Expect a gain of several points in multiple choice with 4,000 examples, and
elsewhere little or nothing.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Experiment, Scale

from .figure import figure
from .trials import TransferConfig, trial

Rates = tuple[float, float]
"""Of pre-training and of fine-tuning."""


def arms(base: TransferConfig, transformer: Rates, lstm: Rates, none: float) -> dict[str, TransferConfig]:
    """Give the rows of Table 5, each with rates of its own.

    What is fine-tuned without the auxiliary loss, or with fewer layers, begins with the transformer's own weights.
    """
    return {
        "transformer": replace(base, ablations=True, learning_rate=transformer[0], fine_rate=transformer[1]),
        "lstm": replace(base, model="lstm", learning_rate=lstm[0], fine_rate=lstm[1]),
        "none": replace(base, pretrained=False, auxiliary=0.0, fine_rate=none),
    }


SCALE = (
    "0.19 million parameters and 0.8 million tokens of novels, addresses and the Brown corpus stand for 116.5 "
    "million and 100 passes over 7,000 books."
)
LATE = (
    f"{SCALE} Where two texts must be compared, a model first has to learn to compare tokens, which takes more text "
    "than there is here."
)
AVERAGE = "74.7 against 59.9 (average of eight tasks with 2,490 to about 392,000 examples)"
TABLE_5 = "Table 5, w/ aux LM (full) against w/o pre-training"


def pretraining_helps(id: str, metric: str, where: str, paper_value: str = AVERAGE, source: str = TABLE_5) -> Claim:
    """Claim that an accuracy is higher with pre-training than without."""
    return Claim(
        id=f"pretraining_helps_{id}",
        statement=f"Pre-training beats none {where}.",
        source=f"{source}; with so few examples not in the paper",
        paper_value=paper_value,
        test=Better(metric, arm="transformer", than="none", direction="higher"),
        scale_gap=LATE,
    )


CLAIMS = (
    pretraining_helps("with_few", "average_few", "on the average of four kinds of task, with 100 labelled examples"),
    pretraining_helps("with_some", "average_some", "on that average with 1,000 labelled examples"),
    pretraining_helps("with_most", "average_most", "on that average with 4,000 labelled examples"),
    pretraining_helps(
        "classification",
        "sentiment",
        "in classification: sentiment, mean over 100, 1,000 and 4,000 examples",
        "91.3 against 84.0 % (SST-2)",
    ),
    pretraining_helps(
        "choice",
        "choice",
        "in multiple choice: QASC, mean over 100, 1,000 and 4,000 examples",
        "about 60 against 40 % (RACE; read off the figure)",
        "Figure 2 (left), all layers transferred against none",
    ),
    Claim(
        id="each_layer_adds",
        statement="In multiple choice, accuracy rises with the number of layers that are transferred.",
        source="Section 5, Figure 2 (left)",
        paper_value="about 42 to 60 % from embeddings to 12 layers on RACE, 75 to 82 on MultiNLI (read off the figure)",
        test=Better("layer_slope", arm="transformer", than=0.0, direction="higher"),
        scale_gap=f"{SCALE} There are three layers, and the slope is over 0 to 3 of them with 4,000 examples.",
    ),
)

EXPERIMENT = Experiment(
    paper="gpt1",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                TransferConfig(
                    vocabulary=300,
                    share=0.002,
                    width=16,
                    layers=2,
                    heads=2,
                    cell_width=34,
                    length=64,
                    batch=2,
                    steps=3,
                    sizes=(8, 16, 32),
                    epochs=(1, 1, 1),
                    fine_batch=8,
                    scored=20,
                ),
                transformer=(4e-3, 4e-3),
                lstm=(4e-3, 4e-3),
                none=2e-3,
            ),
            seeds=1,
        ),
        "laptop": Scale(
            arms(TransferConfig(), transformer=(6e-3, 4e-3), lstm=(3.2e-2, 1.6e-2), none=2e-3),
            seeds=3,
        ),
        "gpu": Scale(
            arms(
                TransferConfig(
                    vocabulary=8192,
                    share=1.0,
                    width=384,
                    layers=6,
                    heads=6,
                    cells=1,
                    cell_width=1408,
                    length=128,
                    batch=128,
                    steps=3000,
                    sizes=(100, 1000, 5000),
                    epochs=(10, 3, 3),
                    fine_batch=32,
                    scored=3000,
                ),
                transformer=(5e-4, 1e-4),
                lstm=(2e-3, 2e-4),
                none=1e-4,
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
