"""Models of our own: their initial weights and their training, and what is told of them."""

import math
from collections.abc import Callable, Mapping
from statistics import mean

import numpy as np
from jaxtyping import Int64
from torch import Tensor, nn

from allyouneed.evidence import Context
from allyouneed.training import Cosine, TrainingConfig, next_token_loss, train

from .gpt3 import GPT3, GPT3Config


def narrow(config: GPT3Config) -> GPT3:
    """Compose a model with initial weights for its width.

    A standard deviation of 0.02 is for widths of 768 and more. Here linear layers are drawn from N(0, 1/width) and
    embeddings from N(0, 1/(4 · width)), with GPT-2's factor for projections that add to the residual path.
    """
    model = GPT3(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            continue
        deviation = 1 / math.sqrt(config.width)
        if name.startswith(("embedding", "positions")):
            deviation /= 2
        elif "output" in name:
            deviation /= math.sqrt(2 * config.layers)
        nn.init.normal_(parameter, std=deviation)
    return model


def train_as_gpt3(
    model: GPT3,
    batches: Callable[[int], Int64[Tensor, "batch window"]],
    steps: int,
    learning_rate: float,
    context: Context,
) -> None:
    """Train a model as the paper trains (appendix B): a short warm-up, then a cosine to a tenth."""
    settings = TrainingConfig(steps, learning_rate, schedule=Cosine(warmup=steps // 20, final=0.1))
    result = train(
        model,
        batches,
        next_token_loss,
        settings,
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=context.log,
    )
    context.costs["step_seconds"] = float(result.step_seconds.median())


def of_step(seed: int, step: int) -> np.random.Generator:
    """Give the generator of a step's documents, which no other step or seed draws from."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))


def curve(found: Mapping[int, float]) -> dict[str, float]:
    """Give the accuracy with each number of examples, and its slope over log2(1 + examples)."""
    across = [math.log2(1 + shots) for shots in found]
    middle, height = mean(across), mean(found.values())
    rise = sum((x - middle) * (y - height) for x, y in zip(across, found.values(), strict=True))
    slope = rise / sum((x - middle) ** 2 for x in across)
    return {f"shots_{shots}": value for shots, value in found.items()} | {"slope": slope}


def size(model: nn.Module) -> dict[str, float]:
    """Count the parameters."""
    return {"parameters": float(sum(parameter.numel() for parameter in model.parameters()))}
