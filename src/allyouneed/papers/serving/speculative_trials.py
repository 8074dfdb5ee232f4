"""The trials of speculation: a small model drafts for a larger one, and what was generated before for SmolLM2."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from allyouneed.data import Split, austen
from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import Context
from allyouneed.hub import open_model
from allyouneed.nn import Decoder
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import ByteTokenizer, ChatTemplate, Sampling, probabilities
from allyouneed.training import Cosine, TrainingConfig, next_token_loss, train

from .configs import ServingConfig
from .engine import Engine
from .loads import clock_of
from .requests import Gathered, Request
from .scheduler import Limits
from .speculation import Draft, ModelDraft, NGramDraft

GREEDY = Sampling.greedy()
# Three tokens may be drawn at each of three places: a vocabulary small enough for all texts to be counted.
FEW = Sampling(top_k=3)
DRAWN = 3
CHAT_MODEL = "smollm2-135m-instruct"

Text = tuple[int, ...]


@cache
def read(split: Split) -> Tensor:
    """Give the bytes of the novels of a split."""
    return ByteTokenizer().encode_to_tensor(austen(split))


def reader(width: int, layers: int, length: int) -> Llama:
    """Make a model that reads bytes."""
    heads = max(1, width // 32)
    return Llama(LlamaConfig(256, width, layers, heads, 32 * -(-width // 12), context=2 * length, tied=True))


def trained(model: Llama, config: ServingConfig, context: Context) -> Llama:
    """Train a model on the novels, as briefly as the configuration says."""
    batches = RandomWindows(read("train"), config.length, config.step_tokens // config.length, context.seed)
    settings = TrainingConfig(config.steps, config.learning_rate, schedule=Cosine(warmup=config.steps // 10))
    train(model, batches, next_token_loss, settings, fabric=context.fabric, log=context.log)
    return model.eval()


def drafted(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Train a model and a smaller one, and let the smaller one draft."""
    target = trained(reader(config.width, config.layers, config.length), config, context)
    small = trained(reader(config.draft_width, config.draft_layers, config.length), config, context)
    draft, draw, tokens = ModelDraft(small), random.Random(context.seed), read(split)
    starts = [draw.randrange(len(tokens) - config.prompt) for _ in range(config.requests)]
    prompts = [tokens[start : start + config.prompt].tolist() for start in starts]
    metrics = compare(target, draft, prompts, config)
    agreed = agreement(target, small, prompts, config.new_tokens)
    # What Leviathan et al. expect where draft tokens are accepted independently of one another (their equation 1).
    expected = sum(agreed**power for power in range(config.proposals + 1))
    for name, texts in (("alone", 1), ("busy", config.texts)):
        context.costs[f"gain_{name}"] = gain(target, draft, prompts[0], config, texts)
    context.costs["gain_kept"] = context.costs["gain_busy"] / context.costs["gain_alone"]
    return metrics | {
        "agreement": agreed,
        "tokens_a_pass_over_expected": metrics["tokens_a_pass"] / expected,
        **significance(target, small, prompts[0], config, context.seed),
        "parameters": sum(weight.numel() for weight in target.parameters()),
        "draft_parameters": sum(weight.numel() for weight in small.parameters()),
    }


def looked_up(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Ask SmolLM2 to say passages again, and propose what followed the same tokens before."""
    stored = open_model(CHAT_MODEL)
    model = Llama.from_stored(stored, device=context.fabric.device)
    tokenizer = Llama.read_tokenizer(stored)
    assert stored.chat_template is not None
    template = ChatTemplate(stored.chat_template, tokenizer)
    draw, text = random.Random(context.seed), austen(split)
    prompts = []
    for _ in range(config.requests):
        start = text.index(". ", draw.randrange(len(text) // 2)) + 2
        passage = " ".join(text[start : start + config.prompt].split())
        prompts.append(template.encode([{"role": "user", "content": f"Repeat this text word for word: {passage}"}]))
    return compare(model, NGramDraft(), prompts, config)


def compare(model: Decoder, draft: Draft, prompts: Sequence[Sequence[int]], config: ServingConfig) -> dict[str, float]:
    """Generate greedy texts with and without draft tokens, and count the steps that each takes."""
    tokens = max(64, 2 * len(prompts) * (1 + config.proposals))
    plain = Engine(model, limits=Limits(len(prompts), tokens), sharing=False)
    expected = plain.generate(prompts, new_tokens=config.new_tokens, sampling=GREEDY)
    engine = Engine(
        model, limits=Limits(len(prompts), tokens, max_draft_tokens=config.proposals), draft=draft, sharing=False
    )
    texts = engine.generate(prompts, new_tokens=config.new_tokens, sampling=GREEDY)
    told = engine.statistics
    # A prompt's own pass gives the first token, with nothing proposed.
    further = told.generated_tokens - len(prompts)
    return {
        "changed": sum(text != other for text, other in zip(texts, expected, strict=True)),
        "passes_a_token": (further - told.accepted_tokens) / further,
        "tokens_a_pass": further / (further - told.accepted_tokens),
        "proposed": told.draft_tokens,
        "accepted": told.accepted_tokens,
    }


@torch.inference_mode()
def agreement(target: Llama, draft: Llama, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """Say how often both models would write the same next token, along the greedy texts of the larger one."""
    engine = Engine(target, limits=Limits(len(prompts), max(64, 2 * len(prompts))), sharing=False)
    texts = engine.generate(prompts, new_tokens=new_tokens, sampling=GREEDY)
    rows = [[*prompt, *text][:-1] for prompt, text in zip(prompts, texts, strict=True)]
    first = len(prompts[0]) - 1
    fed = torch.tensor(rows, device=device_of(target))
    return float((target(fed).argmax(-1) == draft(fed).argmax(-1))[:, first:].float().mean())


def gain(model: Decoder, draft: Draft, prompt: Sequence[int], config: ServingConfig, texts: int) -> float:
    """Measure how many times as fast texts are generated with draft tokens, so many at once."""
    seconds = []
    for own, proposals in ((None, 0), (draft, config.proposals)):
        limits = Limits(texts, max(64, 2 * texts * (1 + proposals)), max_draft_tokens=proposals)
        engine = Engine(model, limits=limits, draft=own, sharing=False)
        engine.generate([prompt] * texts, new_tokens=4, sampling=GREEDY)
        clock = clock_of(engine)
        began = clock()
        engine.generate([prompt] * texts, new_tokens=config.new_tokens, sampling=GREEDY)
        seconds.append(clock() - began)
    return seconds[0] / seconds[1]


def significance(
    target: Llama, draft: Llama, prompt: Sequence[int], config: ServingConfig, seed: int
) -> dict[str, float]:
    """Test by chi-square whether drawn texts have the model's distribution, and whether the draft's own would.

    Returns:
        The probability of counts so far from the expected ones or further, with speculation and for texts that the
        draft writes without being checked.
    """
    proposals = min(config.proposals, DRAWN)
    limits = Limits(config.texts, 4 * config.texts * (1 + proposals), config.draws, proposals)
    engine = Engine(target, limits=limits, draft=ModelDraft(draft))
    gathered = [Gathered() for _ in range(config.draws)]
    for number, own in enumerate(gathered):
        # One token more, so that for the last of those that count something is proposed too.
        engine.submit(Request(prompt, DRAWN + 1, own, FEW, seed=seed * config.draws + number))
    while engine.step():
        pass
    expected, of_draft = chances(target, prompt), chances(draft, prompt)
    # As if as many texts had come exactly as often as the draft would write them.
    unchecked = {text: chance * config.draws for text, chance in of_draft.items()}
    return {
        "significance": chi_square(Counter(tuple(own.tokens[0][:DRAWN]) for own in gathered), expected, config.draws),
        "significance_unchecked": chi_square(unchecked, expected, config.draws),
        "accepted_drawn": engine.statistics.accepted_tokens / engine.statistics.draft_tokens,
    }


def chi_square(counts: Mapping[Text, float], chance: Mapping[Text, float], draws: int) -> float:
    """Give the probability of counts so far from the expected ones or further; 1 where there are too few to tell.

    Texts that should come fewer than five times are counted together, and so are those that should not come at all.
    """
    from scipy.stats import chisquare

    likely = [text for text in chance if chance[text] * draws >= 5]
    observed = [counts.get(text, 0.0) for text in likely]
    wanted = [chance[text] * draws for text in likely]
    observed, wanted = [*observed, draws - sum(observed)], [*wanted, draws - sum(wanted)]
    if wanted[-1] < 5 and len(wanted) > 1:
        for counted in (observed, wanted):
            counted[-2:] = [counted[-2] + counted[-1]]
    return float(chisquare(observed, wanted).pvalue) if len(wanted) > 1 else 1.0


@torch.inference_mode()
def chances(model: Llama, prompt: Sequence[int]) -> dict[Text, float]:
    """Give the probability of every text of a few tokens that may be drawn after a prompt."""
    found: dict[Text, float] = {(): 1.0}
    for _ in range(DRAWN):
        texts = list(found)
        logits = model(torch.tensor([[*prompt, *text] for text in texts], device=device_of(model)))[:, -1]
        following = probabilities(logits, FEW)
        found = {
            (*text, token): found[text] * float(row[token])
            for text, row in zip(texts, following, strict=True)
            for token in row.nonzero().flatten().tolist()
        }
    return found


def device_of(model: Decoder) -> torch.device:
    """Say where a model's weights are."""
    return next(model.parameters()).device
