"""Does reading both ways beat reading from the left, and does it matter how words are hidden?

Laptop: about 15 minutes on 2 cores: five models of 0.24 million parameters are pre-trained on 300 texts of the Brown
corpus with three seeds, and fine-tuned with 100, 1,000 and 5,000 labelled examples, beside one that is not pre-trained.
In so short a training expect the left-to-right model ahead: it predicts each word, the others restore one in seven.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Equivalent, Experiment, Scale

from .figure import figure
from .trials import TransferConfig, trial


def arms(base: TransferConfig) -> dict[str, TransferConfig]:
    """Give the rows of Table 5 and three of Table 8; all see the same texts in as many steps.

    Each has the best of the learning rates that were tried, which are the same for all.
    """
    strategy = {"tasks": ("tagging",), "features": True}
    return {
        "bert": replace(base, features=True),
        "no_nsp": replace(base, next_sentence=False),
        "left_to_right": replace(
            base, objective="left to right", next_sentence=False, learning_rate=2 * base.learning_rate
        ),
        "mask_only": replace(base, masked=1.0, random=0.0, **strategy),
        "random_only": replace(base, masked=0.0, random=1.0, **strategy),
        "none": replace(base, objective="none", next_sentence=False),
    }


SCALE = (
    "0.24 million parameters, rows of 20 tokens and a million tokens, seen about twice, stand for 110 million, rows of "
    "512 and 3.3 billion words, seen 40 times. What is compared is how far each has come by then."
)
EARLY = (
    f"{SCALE} So early, the left-to-right model has had six times as many words to predict as the other to restore, "
    "and in the paper's Figure 5, too, it leads at first."
)

CLAIMS = (
    Claim(
        id="both_ways_token",
        statement="Masked pre-training beats left-to-right pre-training on a token task: parts of speech.",
        source="Table 5, No NSP against LTR & No NSP, SQuAD",
        paper_value="87.9 against 77.8 F1 (SQuAD dev)",
        test=Better("tagging", arm="no_nsp", than="left_to_right", direction="higher"),
        scale_gap=(
            f"{SCALE} Tagging stands for SQuAD and needs less: most words have one usual part of speech. The metric is "
            "the mean of accuracies with 100, 1,000 and 5,000 sentences."
        ),
        sabotage="the two pre-trainings are exchanged",
    ),
    Claim(
        id="both_ways_sentence",
        statement="Masked pre-training beats left-to-right pre-training on a task of single sentences: kinds of prose.",
        source="Table 5, No NSP against LTR & No NSP, SST-2",
        paper_value="92.6 against 92.1 % (SST-2 dev)",
        test=Better("prose", arm="no_nsp", than="left_to_right", direction="higher"),
        scale_gap=EARLY,
        sabotage="the two pre-trainings are exchanged",
    ),
    Claim(
        id="masking_hardly_matters_fine_tuned",
        statement="Fine-tuned, a model pre-trained with masks alone tags as well as BERT's mix, within 0.01.",
        source="Table 8, 80/10/10 against 100/0/0, NER fine-tuned; appendix C.2",
        paper_value="95.4 against 94.9 F1 (CoNLL-2003 NER dev)",
        test=Equivalent("tagging", arm="mask_only", to="bert", tolerance=0.01),
        scale_gap=SCALE,
        sabotage="masks alone are given the mix",
    ),
    Claim(
        id="only_masks_hurts_features",
        statement="With features taken as they are, BERT's mix tags better than only masking.",
        source="Table 8, 80/10/10 against 100/0/0, NER feature-based",
        paper_value="94.9 against 94.0 F1 (CoNLL-2003 NER dev)",
        test=Better("features", arm="bert", than="mask_only", direction="higher"),
        scale_gap=f"{SCALE} A linear layer reads the features here, two layers of LSTM in the paper.",
        sabotage="the two ways of masking are exchanged",
    ),
    Claim(
        id="only_random_hurts_features",
        statement="With features taken as they are, BERT's mix tags better than only random replacement.",
        source="Table 8, 80/10/10 against 0/0/100, NER feature-based; appendix C.2",
        paper_value="94.9 against 94.6 F1 (CoNLL-2003 NER dev)",
        test=Better("features", arm="bert", than="random_only", direction="higher"),
        scale_gap=f"{SCALE} A linear layer reads the features here, two layers of LSTM in the paper.",
        sabotage="the two ways of masking are exchanged",
    ),
)

EXPERIMENT = Experiment(
    paper="bert",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                TransferConfig(
                    vocabulary=200,
                    width=16,
                    layers=2,
                    heads=2,
                    length=24,
                    batch=4,
                    steps=3,
                    sizes=(8, 16),
                    fine_steps=(2, 3),
                    fine_batch=4,
                    longest=24,
                    tested=20,
                )
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(TransferConfig()), seeds=3),
        "gpu": Scale(
            arms(
                TransferConfig(
                    vocabulary=8192,
                    width=384,
                    layers=8,
                    heads=6,
                    length=128,
                    batch=256,
                    steps=3000,
                    learning_rate=5e-4,
                    sizes=(100, 1000, 10_000),
                    fine_steps=(100, 300, 1250),
                    fine_batch=32,
                    fine_rate=1e-4,
                    longest=96,
                    tested=2000,
                )
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
