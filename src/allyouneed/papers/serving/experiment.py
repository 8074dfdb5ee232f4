"""Do the techniques of the survey hold what they promise, and leave every text as it is?

Laptop: about 18 minutes on 2 cores: random loads on a model of 14 million random weights, memory without a model, a
draft and its target trained on novels, and SmolLM2 (fetched once). Batches by iteration carry two and a half times the
load of batches by request at a lower latency; blocks of 16 tokens waste about 2 % of the memory that they hold; a small
draft saves about half of the larger model's passes. Every text is what it is alone, to the last token.
"""

from dataclasses import replace

from allyouneed.evidence import Better, Claim, Equivalent, Exact, Experiment, Scale

from .configs import ServingConfig
from .figure import figure
from .trials import CONTEXT, trial

BLOCKS = (8, 16, 64, 256, CONTEXT)
STATIC_LOADS = (0.1, 0.2)
CONTINUOUS_LOADS = (0.1, 0.2, 0.35, 0.5)
LOADS = (*(f"static_{load:g}" for load in STATIC_LOADS), *(f"continuous_{load:g}" for load in CONTINUOUS_LOADS))


def arms(
    load: ServingConfig,
    chunks: ServingConfig,
    memory: ServingConfig,
    prefixes: ServingConfig,
    draft: ServingConfig,
    lookup: ServingConfig,
    quantised: ServingConfig,
) -> dict[str, ServingConfig]:
    """Give every comparison's arms, each of which differs in one number from that with which it is compared."""
    found = {f"static_{share:g}": replace(load, scheduling="static", load=share) for share in STATIC_LOADS}
    found |= {f"continuous_{share:g}": replace(load, load=share) for share in CONTINUOUS_LOADS}
    whole = chunks.prompt + chunks.texts
    found |= {"prompts_in_chunks": chunks, "prompts_whole": replace(chunks, pass_tokens=whole)}
    found |= {f"blocks_of_{size}": replace(memory, block=size) for size in BLOCKS}
    found |= {"prefixes_shared": replace(prefixes, sharing=True), "prefixes_not_shared": prefixes}
    return found | {"draft": draft, "lookup": lookup, "eight_bits": quantised}


RANDOM = (
    "14 million random weights stand for a language model, and one core for a GPU: a pass with 16 texts costs about "
    "twice one with a single text here, and hardly more on a GPU."
)
NONE_GIVEN = "The survey measures nothing."

CLAIMS = (
    Claim(
        id="texts_unchanged",
        statement=(
            "Whoever else is served, with prompts in chunks, shared beginnings and speculation, each greedy text that "
            "was tried is what it is alone, token for token."
        ),
        source="Section 3.2 (system optimisations, which leave a model's semantics as they are); section 3.1.1",
        paper_value=None,
        test=Exact(
            "changed",
            (*LOADS, "prompts_in_chunks", "prompts_whole", "prefixes_shared", "prefixes_not_shared", "draft", "lookup"),
            equals=0,
        ),
        scale_gap="In 32 bits on a CPU, where a token's arithmetic is the same in every pass (see the readme).",
    ),
    Claim(
        id="throughput",
        statement=(
            "With 2.5 times the load of batches by request, batches by iteration write at least twice as many tokens a "
            "second,"
        ),
        source="Section 3.2.4, iteration-level scheduling (Orca)",
        paper_value=None,
        test=Better("tokens_a_second", "continuous_0.5", "static_0.2", margin=1.0, direction="higher", relative=True),
        scale_gap=f"{NONE_GIVEN} {RANDOM}",
    ),
    Claim(
        id="latency",
        statement="and still a request's time by its tokens, waiting included, is lower at the 99th percentile.",
        source="Section 3.2.4, iteration-level scheduling (Orca)",
        paper_value=None,
        test=Better("whole_p99", "continuous_0.5", "static_0.2", relative=True),
        scale_gap=f"{NONE_GIVEN} {RANDOM}",
    ),
    Claim(
        id="chunks_pause",
        statement=(
            "Where one prompt in ten is long, computing prompts in chunks lowers the 99th percentile of the pauses "
            "between a text's tokens by half or more."
        ),
        source="Not in the survey: Agrawal et al. 2024 (Sarathi-Serve); section 3.2.4 has chunks for pipelines only",
        paper_value=None,
        test=Better("pause_p99", "prompts_in_chunks", "prompts_whole", margin=0.5, relative=True),
        scale_gap=f"{NONE_GIVEN} {RANDOM}",
    ),
    Claim(
        id="waste",
        statement="Blocks of 16 tokens hold at most 4 % more memory than they fill.",
        source="Section 3.2.3, paged attention (vLLM)",
        paper_value="3.7 % (Kwon et al. 2023, Figure 2, which the survey sums up)",
        test=Exact("waste", ("blocks_of_16",), at_most=0.04),
        scale_gap="Lengths are drawn with the means of that paper's conversations, and not taken from them.",
    ),
    Claim(
        id="texts_at_once",
        statement=(
            "In the same memory, blocks of 16 tokens have room for at least twice as many texts at once as stretches "
            "that are reserved for the longest text."
        ),
        source="Section 3.2.3, paged attention (vLLM)",
        paper_value="30 against 7 texts on average (Kwon et al. 2023, Figure 13, Orca reserving the maximum)",
        test=Better(
            "texts_at_once", "blocks_of_16", f"blocks_of_{CONTEXT}", margin=1.0, direction="higher", relative=True
        ),
        scale_gap="Memory is the only limit here; no model is computed.",
    ),
    Claim(
        id="prefixes",
        statement="Prompts that begin with the same 200 tokens cost less than half once their blocks are shared.",
        source="Not in the survey: Zheng et al. 2023 (SGLang); section 3.2.3 shares within one request",
        paper_value=None,
        test=Better("computed_prompt_tokens", "prefixes_shared", "prefixes_not_shared", margin=0.5, relative=True),
        scale_gap="Counted in tokens; which prompts begin alike is the application's affair.",
    ),
    Claim(
        id="distribution",
        statement=(
            "With a draft, drawn texts keep the larger model's distribution: no chi-square test rejects it at 0.1 %."
        ),
        source="Section 3.1.1, speculative decoding",
        paper_value="the same distribution (Leviathan et al. 2023, appendix A.1, a proof)",
        test=Exact("significance", ("draft",), at_least=0.001),
        scale_gap=(
            "Texts of three tokens, each among the three likeliest. What the draft writes by itself, without being "
            "checked, is rejected (see significance_unchecked among the trials' metrics)."
        ),
    ),
    Claim(
        id="draft_passes",
        statement="A draft with a fortieth of the weights saves at least a third of the larger model's passes.",
        source="Section 3.1.1, speculative decoding",
        paper_value=None,
        test=Better("passes_a_token", "draft", 1.0, margin=1 / 3, relative=True),
        scale_gap="0.8 million parameters, trained for a minute on bytes of novels, stand for a language model.",
    ),
    Claim(
        id="tokens_a_pass",
        statement=(
            "A pass yields within a tenth as many tokens as if proposals were accepted independently of one another."
        ),
        source="Section 3.1.1, speculative decoding",
        paper_value="(1 − αᵞ⁺¹) / (1 − α) tokens a pass (Leviathan et al. 2023, equation 1)",
        test=Equivalent("tokens_a_pass_over_expected", "draft", 1.0, tolerance=0.1),
        scale_gap="α is how often both models would write the same greedy token along the larger one's texts.",
    ),
    Claim(
        id="draft_when_busy",
        statement="Sixteen texts at once gain less by a draft than one does.",
        source="Section 5 (a technique may help under one load and hurt under another)",
        paper_value=None,
        test=Better("gain_kept", "draft", 1.0, relative=True),
        scale_gap=f"{RANDOM} The draft proposes for one text after the other.",
    ),
    Claim(
        id="lookup_passes",
        statement=(
            "Where SmolLM2 repeats a passage, proposing what followed the same tokens saves a third of its passes."
        ),
        source="Not in the survey: Saxena 2023 (prompt lookup decoding)",
        paper_value=None,
        test=Better("passes_a_token", "lookup", 1.0, margin=1 / 3, relative=True),
        scale_gap="Text that repeats its prompt is what this is for; on other text it seldom proposes anything.",
    ),
    Claim(
        id="few_bits_alone",
        statement="With weights in 8 bits a single text is written faster than in 32,",
        source="Section 3.2.1, low-bit quantisation",
        paper_value=None,
        test=Better("gain_alone", "eight_bits", 1.0, direction="higher", relative=True),
        scale_gap="By the kernels that torch has for a CPU.",
    ),
    Claim(
        id="few_bits_together",
        statement="and of that gain, as a factor, at least a tenth is lost where sixteen are written at once.",
        source="Not in the survey, whose section 3.2.1 says only that fewer bits may be slower, for want of kernels",
        paper_value=None,
        test=Better("gain_lost", "eight_bits", 0.0, margin=0.1, direction="higher"),
        scale_gap="By the kernels that torch has for a CPU.",
    ),
)

LOAD = ServingConfig("arrivals")
CHUNKS = ServingConfig("arrivals", load=0.4, requests=120, prompt=512, long_prompts=0.1)
MEMORY = ServingConfig("memory", requests=500)
PREFIXES = ServingConfig("prefixes", requests=24, texts=8, common=200)
DRAFT = ServingConfig(
    "draft", requests=12, prompt=64, new_tokens=60, width=128, layers=4, steps=600, step_tokens=2048, draws=4000
)
LOOKUP = ServingConfig("lookup", requests=4, prompt=300, new_tokens=56)
QUANTISED = ServingConfig("quantised", width=576)

SMALL = {"width": 32, "layers": 1, "vocabulary": 64, "checked": 1}

EXPERIMENT = Experiment(
    paper="serving",
    trial=trial,
    claims=CLAIMS,
    figure=figure,
    scales={
        "smoke": Scale(
            arms(
                replace(LOAD, requests=6, texts=3, pass_tokens=8, prompt=6, longest=8, **SMALL),
                replace(CHUNKS, requests=6, texts=3, pass_tokens=8, prompt=16, longest=8, **SMALL),
                replace(MEMORY, requests=40, contexts=3),
                replace(PREFIXES, requests=4, texts=2, common=40, prompt=8, new_tokens=3, **SMALL),
                replace(
                    DRAFT,
                    requests=2,
                    texts=2,
                    prompt=8,
                    new_tokens=8,
                    steps=2,
                    length=16,
                    step_tokens=32,
                    draws=20,
                    width=32,
                    layers=1,
                    draft_width=16,
                ),
                replace(LOOKUP, requests=1, prompt=60, new_tokens=6),
                replace(QUANTISED, texts=2, **SMALL),
            ),
            seeds=1,
        ),
        "laptop": Scale(arms(LOAD, CHUNKS, MEMORY, PREFIXES, DRAFT, LOOKUP, QUANTISED), seeds=5),
        "gpu": Scale(
            arms(
                replace(LOAD, width=1024, layers=16, requests=200),
                replace(CHUNKS, width=1024, layers=16, requests=120),
                MEMORY,
                replace(PREFIXES, width=1024, layers=16, requests=64, common=400),
                replace(DRAFT, width=512, layers=8, draft_width=64, steps=1000),
                LOOKUP,
                replace(QUANTISED, width=1024, layers=16),
            ),
            seeds=5,
            device="cuda",
        ),
    },
)
