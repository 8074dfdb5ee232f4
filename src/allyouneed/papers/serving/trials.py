"""The trials: loads for schedulers, memory for blocks, common beginnings, drafts, and weights of few bits."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from allyouneed.data import Split
from allyouneed.evidence import Context
from allyouneed.nn import quantize_int8
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import Sampling

from .configs import ServingConfig
from .engine import Engine
from .loads import Arrival, fill_memory, full_step_seconds, heavy_tailed, play, service_times
from .scheduler import Limits, Scheduler, StaticScheduler
from .speculative_trials import drafted, looked_up

GREEDY = Sampling.greedy()
# Of the memory's trials: the mean lengths of prompts and texts in ShareGPT's conversations, as Kwon et al. 2023 give
# them in section 6.1, and the context of the model that they served.
MEANS = (161.0, 338.0)
CONTEXT = 2048


def model_config(config: ServingConfig) -> LlamaConfig:
    """Give the numbers of the model that is served; what it costs does not depend on its weights."""
    heads = max(2, config.width // 64)
    return LlamaConfig(
        config.vocabulary,
        config.width,
        config.layers,
        heads,
        # About 8/3 of the width, in whole groups of quantised weights.
        32 * -(-config.width // 12),
        key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        context=CONTEXT,
        tied=True,
        # Large enough for the likeliest token to depend on what was read.
        initial_deviation=0.1,
    )


def random_model(config: ServingConfig, context: Context) -> Llama:
    """Make the model, with random weights."""
    return context.fabric.to_device(Llama(model_config(config))).eval()


def arrivals(config: ServingConfig, draw: random.Random, rate: float) -> list[Arrival]:
    """Draw a load: Poisson arrivals at a rate, requests a second, of prompts and texts of mixed lengths."""
    at, found = 0.0, []
    for _ in range(config.requests):
        long = draw.random() < config.long_prompts
        most = config.prompt if long or not config.long_prompts else config.prompt // 8
        length = draw.randint(most if long else max(1, most // 4), most)
        prompt = [draw.randrange(config.vocabulary) for _ in range(length)]
        found.append(Arrival(at, prompt, heavy_tailed(draw, config.median, config.spread, config.longest)))
        at += draw.expovariate(rate)
    return found


def serve_arrivals(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Serve a load, and say how fast; then see that the first texts are what they are alone."""
    model = random_model(config, context)
    scheduler = StaticScheduler if config.scheduling == "static" else Scheduler
    limits = Limits(config.texts, config.pass_tokens, max_queue=max(config.requests, config.texts))
    room = config.texts * (config.prompt + max(config.longest, 64) + config.block)
    engine = Engine(
        model, cache_tokens=room, block_size=config.block, limits=limits, sharing=False, scheduler=scheduler
    )
    seconds = full_step_seconds(engine, config.prompt // 2, config.texts, config.vocabulary)
    load = arrivals(config, random.Random(context.seed), 1.0)
    mean = sum(arrival.new_tokens for arrival in load) / len(load)
    # Requests a second that ask for this share of what full steps generate.
    rate = config.load * config.texts / seconds / mean
    told = play(engine, [replace(arrival, at=arrival.at / rate) for arrival in load])
    context.costs.update(service_times(told))
    context.costs["full_pass_seconds"] = seconds
    context.log(step=1, steps=2)
    by_itself = Engine(
        model,
        cache_tokens=CONTEXT,
        limits=Limits(max_num_sequences=1, max_batched_tokens=config.pass_tokens),
        sharing=False,
    )
    changed = 0
    for own in told[: config.checked]:
        (text,) = by_itself.generate([own.arrival.prompt], new_tokens=own.arrival.new_tokens, sampling=GREEDY)
        changed += text != own.tokens
    context.log(step=2, steps=2)
    return {"changed": changed, "written": sum(len(own.tokens) for own in told)}


def hold_memory(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Fill memory with blocks of one size."""
    counted = fill_memory(
        seed=context.seed,
        requests=config.requests,
        context=CONTEXT,
        contexts=config.contexts,
        block=config.block,
        means=MEANS,
        spread=1.0,
    )
    context.log(step=1, steps=1)
    return dict(counted)


def share_prefixes(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Serve prompts that begin alike, as those of one application do, and count the tokens that are computed."""
    model, draw = random_model(config, context), random.Random(context.seed)
    common = [draw.randrange(config.vocabulary) for _ in range(config.common)]
    own = [draw.randint(config.prompt // 4, config.prompt) for _ in range(config.requests)]
    load = [
        Arrival(0.0, [*common, *(draw.randrange(config.vocabulary) for _ in range(length))], config.new_tokens)
        for length in own
    ]
    limits = Limits(config.texts, config.pass_tokens, max_queue=max(config.requests, config.texts))
    engine = Engine(model, block_size=config.block, limits=limits, sharing=config.sharing)
    told = play(engine, load)
    context.costs.update(service_times(told))
    context.log(step=1, steps=2)
    by_itself = Engine(model, limits=Limits(max_num_sequences=1, max_batched_tokens=config.pass_tokens), sharing=False)
    changed = 0
    for one in told[: config.checked]:
        (text,) = by_itself.generate([one.arrival.prompt], new_tokens=config.new_tokens, sampling=GREEDY)
        changed += text != one.tokens
    context.log(step=2, steps=2)
    # Of a continuation, all but its last token are computed, each by itself.
    in_texts = config.requests * (config.new_tokens - 1)
    return {
        "changed": changed,
        "prompt_tokens": sum(len(arrival.prompt) for arrival in load),
        "computed_prompt_tokens": engine.statistics.computed_tokens - in_texts,
    }


def quantise(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Time steps of a model in 32 bits, and of the same in 8, with one sequence and with many."""
    seconds = {}
    for bits in (32, 8):
        torch.manual_seed(context.seed)
        model = random_model(config, context)
        if bits == 8:
            quantize_int8(model)
        for texts in (1, config.texts):
            engine = Engine(model, limits=Limits(texts, max(config.texts + 1, 24)), sharing=False)
            seconds[bits, texts] = full_step_seconds(engine, config.prompt, texts, config.vocabulary)
            context.costs[f"pass_seconds_{bits}_bits_{texts}_texts"] = seconds[bits, texts]
        context.log(step=1 + (bits == 8), steps=2)
    alone, together = (seconds[32, texts] / seconds[8, texts] for texts in (1, config.texts))
    context.costs.update(gain_alone=alone, gain_together=together, gain_lost=1 - together / alone)
    return {"parameters": sum(weight.numel() for weight in random_model(config, context).parameters())}


TASKS: Mapping[str, Callable[[ServingConfig, Context, Split], dict[str, float]]] = {
    "arrivals": serve_arrivals,
    "memory": hold_memory,
    "prefixes": share_prefixes,
    "draft": drafted,
    "lookup": looked_up,
    "quantised": quantise,
}


def trial(config: ServingConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Do what the arm is for."""
    return TASKS[config.task](config, context, split)
