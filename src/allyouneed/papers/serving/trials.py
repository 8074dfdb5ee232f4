"""The trials: saturated schedulers, the loads that they bear, long prompts, memory in blocks, and drafts."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from allyouneed.data import Split
from allyouneed.evidence import Context
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import Sampling

from .blocks import BlockPool
from .configs import ServingConfig
from .engine import Engine
from .limits import Limits
from .loads import (
    Arrival,
    Told,
    fill_memory,
    first_token_steps,
    full_step_seconds,
    heavy_tailed,
    play,
    service_times,
)
from .scheduler import Scheduler, StaticScheduler
from .speculative_trials import speculate

SCHEDULERS: Mapping[str, type[Scheduler]] = {"continuous": Scheduler, "static": StaticScheduler}
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Loads at which the wait for the first token is drawn."""
BISECTIONS = 12
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
    """Draw a load: Poisson arrivals at a rate, requests a unit of time, of prompts and texts of mixed lengths."""
    at, found = 0.0, []
    for _ in range(config.requests):
        long = draw.random() < config.long_prompts
        most = config.prompt if long or not config.long_prompts else config.prompt // 8
        length = draw.randint(most if long else max(1, most // 4), most)
        prompt = [draw.randrange(config.vocabulary) for _ in range(length)]
        found.append(Arrival(at, prompt, heavy_tailed(draw, config.median, config.spread, config.longest)))
        at += draw.expovariate(rate)
    return found


def engine_for(config: ServingConfig, model: Llama) -> Engine:
    """Make the engine of an arm, with memory for all sequences that run at once."""
    limits = limits_of(config)
    room = config.max_num_sequences * (config.prompt + max(config.longest, 64) + config.block)
    scheduler = SCHEDULERS[config.scheduling]
    return Engine(model, cache_tokens=room, block_size=config.block, limits=limits, sharing=False, scheduler=scheduler)


def limits_of(config: ServingConfig) -> Limits:
    """Give a scheduler's limits: nobody is turned away."""
    queue = max(config.requests, config.max_num_sequences)
    return Limits(config.max_num_sequences, config.max_batched_tokens, max_queue=queue)


def saturate(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Serve requests that are all there from the beginning, and count the tokens of a step."""
    model = random_model(config, context)
    engine = engine_for(config, model)
    told = play(engine, [replace(own, at=0.0) for own in arrivals(config, random.Random(context.seed), 1.0)])
    context.costs.update(service_times(told))
    context.log(step=1, steps=2)
    statistics = engine.statistics
    metrics = {"tokens_a_step": statistics.generated_tokens / statistics.steps, "steps": statistics.steps}
    return metrics | checked_alone(model, told, config, context)


def find_load(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Find the highest load at which the 99th percentile of the wait for the first token stays within a bound.

    The bound is as many steps as the longest continuation takes, and time is counted in steps, without a model.
    """
    load = arrivals(config, random.Random(context.seed), 1.0)
    mean = sum(arrival.new_tokens for arrival in load) / len(load)

    def wait(share: float) -> float:
        pool = BlockPool(
            config.max_num_sequences * (config.prompt + config.longest + config.block) // config.block,
            config.block,
            sharing=False,
        )
        # Requests a step that ask for this share of what full steps generate.
        rate = share * config.max_num_sequences / mean
        waits = first_token_steps(
            SCHEDULERS[config.scheduling](pool, limits_of(config)), [replace(own, at=own.at / rate) for own in load]
        )
        return sorted(waits)[math.ceil(0.99 * len(waits)) - 1]

    shares = {share: wait(share) for share in SHARES}
    context.log(step=1, steps=2)
    least, most = 0.01, 1.0
    for _ in range(BISECTIONS if shares[1.0] > config.longest else 0):
        middle = math.sqrt(least * most)
        least, most = (middle, most) if wait(middle) <= config.longest else (least, middle)
    context.log(step=2, steps=2)
    return {"highest_load": most} | {f"first_p99_at_{share:g}": steps for share, steps in shares.items()}


def serve_arrivals(config: ServingConfig, context: Context, split: Split) -> dict[str, float]:
    """Serve a load, and say how fast; then see that the first texts are what they are alone."""
    model = random_model(config, context)
    engine = engine_for(config, model)
    seconds = full_step_seconds(engine, config.prompt // 2, config.max_num_sequences, config.vocabulary)
    load = arrivals(config, random.Random(context.seed), 1.0)
    mean = sum(arrival.new_tokens for arrival in load) / len(load)
    # Requests a second that ask for this share of what full steps generate.
    rate = config.load * config.max_num_sequences / seconds / mean
    told = play(engine, [replace(arrival, at=arrival.at / rate) for arrival in load])
    context.costs.update(service_times(told))
    context.costs["full_step_seconds"] = seconds
    context.log(step=1, steps=2)
    return checked_alone(model, told, config, context)


def checked_alone(model: Llama, told: Sequence[Told], config: ServingConfig, context: Context) -> dict[str, float]:
    """Count the first texts that are not what the model generates for their prompts alone."""
    by_itself = Engine(
        model,
        cache_tokens=CONTEXT,
        limits=Limits(max_num_sequences=1, max_batched_tokens=config.max_batched_tokens),
        sharing=False,
    )
    changed = 0
    for own in told[: config.checked]:
        (text,) = by_itself.generate([own.arrival.prompt], new_tokens=own.arrival.new_tokens, sampling=GREEDY)
        changed += text != own.tokens
    context.log(step=2, steps=2)
    return {"changed": changed, "generated": sum(len(own.tokens) for own in told)}


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


TASKS: Mapping[str, Callable[[ServingConfig, Context, Split], dict[str, float]]] = {
    "saturated": saturate,
    "loads": find_load,
    "arrivals": serve_arrivals,
    "memory": hold_memory,
    "draft": speculate,
}


def trial(config: ServingConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Do what the arm is for."""
    return TASKS[config.task](config, context, split)
