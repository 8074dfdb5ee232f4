"""Does RWKV learn as well as a transformer of its size, write in constant memory, and train in linear time?

Laptop: about 12 minutes of trials. In so short a training RWKV's loss ends a tenth or more below the transformer's.
What is carried, and the time of a token, are the same after 512 tokens and after 8,192, where the cache of attention is
16 times as large and its time twice as long. A step over 8 times as many tokens takes 8 times the memory, and with
attention written out over 50 times. Times are those that the process has a core for itself.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Equivalent, Exact, Experiment, Scale, Trend

from .figure import STEPPED, WRITTEN, figure
from .trials import RwkvTrialConfig, trial


def arms(
    trained: RwkvTrialConfig, rates: tuple[float, float], written: RwkvTrialConfig, stepped: RwkvTrialConfig
) -> dict[str, RwkvTrialConfig]:
    """Give both models trained alike, and both timed over lengths.

    Args:
        trained: what the trained models have alike.
        rates: the best learning rates of RWKV and of the transformer, from the same grid.
        written: the shortest text that is written.
        stepped: the shortest sequence that a step is over.
    """
    chosen = {
        "rwkv": replace(trained, learning_rate=rates[0]),
        "transformer": replace(trained, model="transformer", learning_rate=rates[1]),
    }
    for arm, times in WRITTEN.items():
        chosen[arm] = replace(written, length=times * written.length)
    for arm, times in STEPPED.items():
        chosen[arm] = replace(stepped, length=times * stepped.length)
    return chosen


TOKENS = {arm: float(times) for arm, times in WRITTEN.items()}
LENGTHS = {arm: float(times) for arm, times in STEPPED.items()}

SMALL = (
    "Bytes, 0.2 million parameters and 1.5 million tokens stand for the paper's word pieces, 169 million to 14 "
    "billion parameters and 330 billion tokens."
)
NARROW = (
    "In so narrow a model the cache is larger than the weights of the blocks from 832 tokens on (6.5 times the width); "
    "at the width of the paper's 3B model it would be from 16,640 on."
)
LAYER = "One layer of width 64, since in wide models the products with weights hide attention's growth for long."

CLAIMS = (
    Claim(
        id="loss_equals_transformer",
        statement=(
            "Trained on the same tokens, RWKV's held-out loss is within 3 % of that of a transformer with as many "
            "weights in matrices."
        ),
        source="Section 5.1, Figure 1; appendix J.3, Table 5",
        paper_value="as Pythia and OPT on twelve tasks; 1.178 against 1.137 bits a character of enwik8 (+3.6 %)",
        test=Equivalent("loss", arm="rwkv", to="transformer", tolerance=0.03, relative=True),
        scale_gap=(
            f"{SMALL} So short a training shows which of the two learns faster, and not where they end: recall of what "
            "stands far back, attention's strength, comes late."
        ),
        sabotage="both arms are transformers",
    ),
    Claim(
        id="loss_no_worse",
        statement="It is no more than 3 % above it, whatever it is below.",
        source="Section 5.1, Figure 1",
        paper_value="on par with Pythia and OPT, above BLOOM",
        test=Better("loss", arm="rwkv", than="transformer", margin=-0.03, relative=True),
        scale_gap=SMALL,
        sabotage="the models are exchanged",
    ),
    Claim(
        id="state_is_constant",
        statement="However many tokens were written, 5 numbers for each layer and coordinate are carried on.",
        source="Appendix D",
        paper_value="5DL numbers",
        test=Exact("numbers_over_5DL", arms=tuple(WRITTEN), equals=1.0),
        scale_gap="Nothing: the memory of all tensors that are kept is counted.",
        sabotage="the state keeps keys and values of all tokens",
    ),
    Claim(
        id="cache_grows",
        statement="The transformer's cache grows in proportion: as a power of the tokens, between 0.95 and 1.05.",
        source="Section 1; Figure 13",
        test=Trend("transformer_bytes", TOKENS, law="power", above=0.95, below=1.05),
        scale_gap="Room is made for the tokens of the text, and for no more.",
        sabotage="the transformer keeps as much as RWKV does",
    ),
    Claim(
        id="token_time_is_constant",
        statement=(
            "The time of a token does not depend on how many there were: over that of a text just begun, as a power of "
            "them, it is between −0.05 and 0.05."
        ),
        source="Section 6, Figure 7",
        paper_value="3B: about 10 seconds for 1,000 tokens, in a straight line (read off)",
        test=Trend("rwkv_over_begun", TOKENS, law="power", above=-0.05, below=0.05),
        scale_gap=f"512 to 8,192 tokens. {NARROW}",
        sabotage="a token takes as long as a transformer's",
    ),
    Claim(
        id="long_text_is_faster",
        statement="Writing the longest text takes RWKV at most three quarters of the transformer's time.",
        source="Figure 7",
        paper_value="about a sixth at 1,000 tokens (read off; its rivals seem to have kept no keys and values)",
        test=Better("seconds_over_transformer", arm=max(WRITTEN, key=lambda arm: WRITTEN[arm]), than=0.75),
        scale_gap=f"{NARROW} Our transformer keeps its keys and values.",
        sabotage="a text takes as long as a transformer's",
    ),
    Claim(
        id="training_memory_is_linear",
        statement="A training step's memory is linear in the length: as a power of it, between 0.9 and 1.1.",
        source="Abstract (memory linear in the length); the power is our arithmetic: Table 1 is about inference",
        paper_value=None,
        test=Trend("rwkv_megabytes", LENGTHS, law="power", above=0.9, below=1.1),
        scale_gap=LAYER,
        sabotage="all pairs of tokens are held",
    ),
    Claim(
        id="training_time_is_linear",
        statement="A step's time is at most linear: the power is below 1.1.",
        source="Abstract; section 3.2",
        paper_value="O(BTd²)",
        test=Trend("rwkv_milliseconds", LENGTHS, law="power", below=1.1),
        scale_gap=f"{LAYER} At short lengths much of the time goes into calls, and the power is below 1.",
        sabotage="all pairs of tokens are computed",
    ),
)

EXPERIMENT = Experiment(
    paper="rwkv",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                RwkvTrialConfig(
                    "training", 16, width=16, layers=2, heads=2, step_tokens=64, steps=3, evaluated_tokens=512
                ),
                (8e-3, 8e-3),
                RwkvTrialConfig("writing", 4, width=16, layers=1, heads=2, turn=2),
                RwkvTrialConfig("stepping", 16, width=16, layers=1, heads=2, repeats=1),
            ),
            seeds=1,
        ),
        "laptop": Scale(
            arms(
                RwkvTrialConfig("training", 256),
                (8e-3, 8e-3),
                RwkvTrialConfig("writing", 512, width=128, layers=2),
                RwkvTrialConfig("stepping", 512, width=64, layers=1),
            ),
            seeds=5,
        ),
        "gpu": Scale(
            arms(
                RwkvTrialConfig(
                    "training",
                    1024,
                    vocabulary=4096,
                    width=512,
                    layers=8,
                    heads=8,
                    step_tokens=32_768,
                    steps=2000,
                    evaluated_tokens=131_072,
                ),
                (1e-3, 1e-3),
                RwkvTrialConfig("writing", 512, width=1024, layers=4, heads=16),
                RwkvTrialConfig("stepping", 1024, width=512, layers=1, heads=8),
            ),
            seeds=3,
            device="cuda",
            precision="bf16-mixed",
        ),
    },
)
