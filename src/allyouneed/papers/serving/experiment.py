"""Do the techniques of the survey hold what they promise, and leave every text as it is?

Laptop: about 20 minutes on 2 cores: full queues and random loads on a model of 14 million random weights, schedulers
and memory without a model, and three drafts for a target that was trained on novels. Continuous batching generates
three to four times as many tokens a step as static batching, and bears over five times its load; blocks of 16 tokens
hold five times as many sequences. Every text is what it is alone, to the last token.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Equivalent, Exact, Experiment, Resolution, Scale

from .configs import ServingConfig
from .figure import figure
from .trials import CONTEXT, trial

BLOCKS = (8, 16, 64, 256, CONTEXT)
PILOT = "pilot on seeds 1000 to 1002; at five seeds the interval is half as wide"


def arms(
    saturated: ServingConfig, loads: ServingConfig, chunks: ServingConfig, memory: ServingConfig, draft: ServingConfig
) -> dict[str, ServingConfig]:
    """Give every comparison's arms, each of which differs in one number from that with which it is compared."""
    found = {f"{kind}_saturated": replace(saturated, scheduling=kind) for kind in ("static", "continuous")}
    found |= {f"{kind}_loads": replace(loads, scheduling=kind) for kind in ("static", "continuous")}
    whole = chunks.prompt + chunks.max_num_sequences
    found |= {"prompts_in_chunks": chunks, "prompts_whole": replace(chunks, max_batched_tokens=whole)}
    return found | {f"blocks_of_{size}": replace(memory, block=size) for size in BLOCKS} | {"draft": draft}


RANDOM = (
    "14 million random weights stand for a language model, and one core for a GPU: a step with 16 sequences costs "
    "about twice one with a single sequence here, and hardly more on a GPU."
)
STEPS = "Time is counted in steps, as if each took as long as any other; on a GPU that is nearly so."
NONE_GIVEN = "The survey measures nothing."

CLAIMS = (
    Claim(
        id="greedy_texts_unchanged",
        statement=(
            "Whoever else is served, with prompts in chunks and with draft tokens, each greedy text that was tried is "
            "what it is alone, token for token."
        ),
        source="Section 3.2 (system optimisations, which leave a model's semantics as they are); section 3.1.1",
        test=Exact(
            "changed",
            ("static_saturated", "continuous_saturated", "prompts_in_chunks", "prompts_whole", "draft"),
            equals=0,
        ),
        scale_gap="In 32 bits on a CPU, where a token's arithmetic is the same in every step (see the readme).",
        sabotage="draft tokens are accepted without a look at the model's own",
    ),
    Claim(
        id="saturated_tokens_a_step",
        statement=(
            "With more requests waiting than fit, continuous batching generates over twice as many tokens a step as "
            "static batching."
        ),
        source="Section 3.2.4, iteration-level scheduling (Orca)",
        test=Better(
            "tokens_a_step", "continuous_saturated", "static_saturated", margin=1.0, direction="higher", relative=True
        ),
        scale_gap=f"{NONE_GIVEN} {RANDOM} Tokens a second are among the trials' costs.",
        resolution=Resolution(0.23, 5, PILOT),
        sabotage="the continuous arm runs the static scheduler",
    ),
    Claim(
        id="highest_load",
        statement=(
            "Continuous batching bears over three times the load of static batching before one request in a hundred "
            "waits longer for its first token than the longest text takes."
        ),
        source="Section 3.2.4, iteration-level scheduling (Orca)",
        test=Better("highest_load", "continuous_loads", "static_loads", margin=2.0, direction="higher", relative=True),
        scale_gap=f"{NONE_GIVEN} {STEPS}",
        resolution=Resolution(1.0, 5, PILOT),
        sabotage="the continuous arm runs the static scheduler",
    ),
    Claim(
        id="chunked_prefill_pause",
        statement=(
            "Where one prompt in five is long, chunked prefill makes the longest pause of a text, at the 90th "
            "percentile of all texts, shorter by half or more."
        ),
        source="Not in the survey: Agrawal et al. 2024 (Sarathi-Serve); section 3.2.4 has chunks for pipelines only",
        test=Better("longest_pause_p90", "prompts_in_chunks", "prompts_whole", margin=0.5, relative=True),
        scale_gap=f"{NONE_GIVEN} {RANDOM}",
        resolution=Resolution(0.02, 5, PILOT),
        sabotage="both arms compute prompts whole",
    ),
    Claim(
        id="chunked_prefill_price",
        statement="For that the first token comes later: at the 99th percentile by a tenth or more.",
        source="Not in the survey; Agrawal et al. 2024 (Sarathi-Serve) weigh it against the pauses",
        test=Better(
            "first_p99", "prompts_whole", "prompts_in_chunks", margin=1 - 1 / 1.1, direction="lower", relative=True
        ),
        scale_gap=f"{NONE_GIVEN} {RANDOM}",
        resolution=Resolution(0.05, 5, PILOT),
        sabotage="both arms compute prompts whole",
    ),
    Claim(
        id="sequences_at_once",
        statement=(
            "In the same memory, blocks of 16 tokens have room for at least twice as many sequences at once as "
            "stretches that are reserved for the longest."
        ),
        source="Section 3.2.3, paged attention (vLLM)",
        paper_value="30 against 7 sequences on average (Kwon et al. 2023, Figure 13, Orca reserving the maximum)",
        test=Better(
            "sequences_at_once", "blocks_of_16", f"blocks_of_{CONTEXT}", margin=1.0, direction="higher", relative=True
        ),
        scale_gap=(
            "Memory is the only limit here; no model is computed. Lengths are drawn with the means of that paper's "
            "conversations, and not taken from them."
        ),
        resolution=Resolution(0.05, 5, PILOT),
        sabotage="blocks are as long as the context in both arms",
    ),
    Claim(
        id="same_distribution",
        statement=(
            "With draft tokens, sampled texts keep the larger model's distribution: no chi-square test rejects it at "
            "0.1 %."
        ),
        source="Section 3.1.1, speculative decoding",
        paper_value="the same distribution (Leviathan et al. 2023, appendix A.1, a proof)",
        test=Exact("significance", ("draft",), at_least=0.001),
        scale_gap=(
            "Texts of three tokens, each among the three likeliest. What the draft samples by itself, without being "
            "checked, is rejected (see significance_unchecked among the trials' metrics)."
        ),
        sabotage="draft tokens are accepted without a look at the model's own",
    ),
    Claim(
        id="tokens_a_step_by_the_formula",
        statement=(
            "On average over three drafts and one to seven draft tokens, a step gives within a tenth as many tokens as "
            "if these were accepted independently of one another."
        ),
        source="Section 3.1.1, speculative decoding",
        paper_value="(1 − αᵞ⁺¹) / (1 − α) tokens a step (Leviathan et al. 2023, equation 1)",
        test=Equivalent("tokens_a_step_over_independent", "draft", 1.0, tolerance=0.1),
        scale_gap=(
            "Texts are sampled, and α is the mean overlap of both models' distributions along them; 0.8 million "
            "parameters, trained for a minute on bytes of novels, stand for a language model."
        ),
        resolution=Resolution(0.02, 5, PILOT),
        sabotage="all draft tokens but the first are thrown away",
    ),
)

SATURATED = ServingConfig("saturated")
LOADS = ServingConfig("loads", requests=800)
CHUNKS = ServingConfig("arrivals", load=0.2, requests=200, prompt=512, long_prompts=0.2)
MEMORY = ServingConfig("memory", requests=500)
DRAFT = ServingConfig(
    "draft", requests=32, prompt=64, new_tokens=96, width=128, layers=4, steps=600, step_tokens=2048, samples=4000
)

SMALL = {"width": 32, "layers": 1, "vocabulary": 64, "checked": 1, "max_num_sequences": 3, "max_batched_tokens": 8}

EXPERIMENT = Experiment(
    paper="serving",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                replace(SATURATED, requests=6, prompt=6, longest=8, **SMALL),
                replace(LOADS, requests=12, prompt=6, longest=8, max_num_sequences=3, max_batched_tokens=8),
                replace(CHUNKS, requests=6, prompt=16, longest=8, **SMALL),
                replace(MEMORY, requests=40, contexts=3),
                replace(
                    DRAFT,
                    requests=2,
                    max_num_sequences=2,
                    prompt=8,
                    new_tokens=8,
                    steps=2,
                    length=16,
                    step_tokens=32,
                    samples=20,
                    width=32,
                    layers=1,
                    draft_widths=(16,),
                    draft_tokens=(1, 3),
                ),
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(SATURATED, LOADS, CHUNKS, MEMORY, DRAFT), seeds=5),
        "gpu": Scale(
            arms(
                replace(SATURATED, width=1024, layers=16, requests=400),
                LOADS,
                replace(CHUNKS, width=1024, layers=16),
                MEMORY,
                replace(DRAFT, width=512, layers=8, steps=1000),
            ),
            seeds=5,
            device="cuda",
        ),
    },
)
