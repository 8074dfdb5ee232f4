"""What the trials are told: one configuration for each arm."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServingConfig:
    """One arm.

    Attributes:
        task: what is tried.
        scheduling: continuous or static batching.
        load: tokens that are asked for in a step or a second, as a share of what full steps generate.
        requests: how many there are.
        max_num_sequences: sequences that are generated at once.
        max_batched_tokens: tokens of a step.
        prompt: the longest prompt, in tokens.
        long_prompts: share of the requests whose prompts are the longest; others have at most an eighth of that.
        median: of the lengths of continuations, in tokens.
        spread: standard deviation of their logarithms.
        longest: of the continuations.
        new_tokens: of every continuation, where lengths are not sampled.
        checked: how many continuations are generated again, each alone.
        block: tokens of a block.
        contexts: memory, in whole contexts of 2,048 tokens.
        vocabulary: of the model with random weights.
        width: of the residual stream.
        layers: number of blocks.
        draft_widths: of the smaller models.
        draft_tokens: numbers of draft tokens of a sequence in a step that are tried.
        length: tokens of a window in training.
        step_tokens: tokens of a batch.
        steps: optimiser steps.
        learning_rate: at its peak.
        samples: continuations that are sampled for the test of the distribution.
    """

    task: Literal["saturated", "loads", "arrivals", "memory", "draft"]
    scheduling: Literal["continuous", "static"] = "continuous"
    load: float = 0.4
    requests: int = 200
    max_num_sequences: int = 16
    max_batched_tokens: int = 64
    prompt: int = 32
    long_prompts: float = 0.0
    median: float = 16.0
    spread: float = 1.3
    longest: int = 256
    new_tokens: int = 16
    checked: int = 4
    block: int = 16
    contexts: int = 16
    vocabulary: int = 4096
    width: int = 384
    layers: int = 8
    draft_widths: tuple[int, ...] = (16, 32, 64)
    draft_tokens: tuple[int, ...] = (1, 2, 4, 7)
    length: int = 128
    step_tokens: int = 1024
    steps: int = 200
    learning_rate: float = 8e-3
    samples: int = 600
