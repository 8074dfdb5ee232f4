"""The trial of speculation: small models draft for a larger one, and what they draft is counted and tested."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from allyouneed.data import Split, austen
from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import Context
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import ByteTokenizer, Sampling, probabilities
from allyouneed.training import Cosine, TrainingConfig, next_token_loss, train

from .configs import ServingConfig
from .engine import Engine
from .limits import Limits
from .requests import Gathered, Request
from .speculation import ModelDraft

GREEDY = Sampling.greedy()
# Three tokens may be drawn at each of three places: a vocabulary small enough for all texts to be counted.
FEW = Sampling(top_k=3)
DRAWN = 3

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


def speculate(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Train a model and smaller ones, and let each of these draft for it, so many tokens at a time."""
    target = trained(reader(config.width, config.layers, config.length), config, context)
    draw, tokens = random.Random(context.seed), read(split)
    starts = [draw.randrange(len(tokens) - config.prompt) for _ in range(config.requests)]
    prompts = [tokens[start : start + config.prompt].tolist() for start in starts]
    metrics: dict[str, float] = {"changed": 0.0}
    ratios = []
    for width in config.draft_widths:
        small = trained(reader(width, 1, config.length), config, context)
        for most in config.draft_tokens:
            given, alpha = speculated(target, small, prompts, config, most, context.seed)
            # Leviathan et al. 2023, equation 1: what independent acceptances would give.
            independent = sum(alpha**power for power in range(most + 1))
            metrics[f"acceptance_of_{width}_at_{most}"] = alpha
            metrics[f"tokens_a_step_of_{width}_at_{most}"] = given
            metrics[f"independent_of_{width}_at_{most}"] = independent
            ratios.append(given / independent)
        metrics["changed"] += changed_by(target, small, prompts, config)
        if width == config.draft_widths[len(config.draft_widths) // 2]:
            metrics |= significance(target, small, prompts[0], config, context.seed)
    metrics["tokens_a_step_over_independent"] = sum(ratios) / len(ratios)
    return metrics | {"parameters": sum(weight.numel() for weight in target.parameters())}


def engine_for(target: Llama, sequences: int, draft: Llama | None = None, draft_tokens: int = 0) -> Engine:
    """Make an engine with every sequence in every step."""
    limits = Limits(sequences, max(64, 2 * sequences * (1 + draft_tokens)), max_draft_tokens=draft_tokens)
    return Engine(target, limits=limits, draft=None if draft is None else ModelDraft(draft), sharing=False)


def speculated(
    target: Llama, draft: Llama, prompts: Sequence[Sequence[int]], config: ServingConfig, draft_tokens: int, seed: int
) -> tuple[float, float]:
    """Sample texts with draft tokens.

    Returns:
        The tokens that a step of a sequence gives, and α, how likely a draft token is to be accepted: the sum over the
        vocabulary of the lesser of both models' probabilities, on average along the texts (Leviathan et al. 2023,
        corollary 3.6).
    """
    engine = engine_for(target, len(prompts), draft, draft_tokens)
    texts = engine.generate(prompts, new_tokens=config.new_tokens, sampling=Sampling(), seed=seed)
    # A prompt's own step gives the first token, and nothing is drafted for it.
    further = engine.statistics.generated_tokens - len(prompts)
    rows = [[*prompt, *text][:-1] for prompt, text in zip(prompts, texts, strict=True)]
    fed = torch.tensor(rows, device=device_of(target))
    with torch.inference_mode():
        ours, theirs = (model(fed)[:, len(prompts[0]) :].softmax(-1) for model in (target, draft))
    alpha = float(torch.minimum(ours, theirs).sum(-1).mean())
    return further / (further - engine.statistics.accepted_tokens), alpha


def changed_by(target: Llama, draft: Llama, prompts: Sequence[Sequence[int]], config: ServingConfig) -> int:
    """Count the greedy texts that are others with draft tokens than without."""
    most = max(config.draft_tokens)
    plain, drafted = (
        engine.generate(prompts, new_tokens=config.new_tokens, sampling=GREEDY)
        for engine in (engine_for(target, len(prompts)), engine_for(target, len(prompts), draft, most))
    )
    return sum(text != other for text, other in zip(plain, drafted, strict=True))


def significance(
    target: Llama, draft: Llama, prompt: Sequence[int], config: ServingConfig, seed: int
) -> dict[str, float]:
    """Test by chi-square whether drawn texts have the model's distribution, and whether the draft's own would.

    Returns:
        The probability of counts so far from the expected ones or further, with speculation and for texts that the
        draft writes without being checked.
    """
    sequences, most = config.max_num_sequences, min(4, DRAWN)
    limits = Limits(sequences, 4 * sequences * (1 + most), config.samples, most)
    engine = Engine(target, limits=limits, draft=ModelDraft(draft))
    gathered = [Gathered() for _ in range(config.samples)]
    for number, own in enumerate(gathered):
        # One token more, so that for the last of those that count something is proposed too.
        engine.submit(Request(prompt, DRAWN + 1, own, FEW, seed=seed * config.samples + number))
    while engine.step():
        pass
    expected, of_draft = chances(target, prompt), chances(draft, prompt)
    # As if as many texts had come exactly as often as the draft would write them.
    unchecked = {text: chance * config.samples for text, chance in of_draft.items()}
    return {
        "significance": chi_square(Counter(tuple(own.tokens[0][:DRAWN]) for own in gathered), expected, config.samples),
        "significance_unchecked": chi_square(unchecked, expected, config.samples),
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


def device_of(model: Llama) -> torch.device:
    """Say where a model's weights are."""
    return next(model.parameters()).device
