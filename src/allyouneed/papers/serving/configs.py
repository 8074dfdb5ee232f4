"""What the trials are told: one configuration for each arm."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServingConfig:
    """One arm.

    Attributes:
        task: what is tried.
        scheduling: by iteration, or by request.
        load: tokens that are asked for in a second, as a share of what steps generate that are full of sequences.
        requests: how many there are.
        texts: sequences that are generated at once.
        pass_tokens: tokens of a step.
        prompt: the longest prompt, in tokens; in `lookup` of a passage, in characters.
        long_prompts: share of the requests whose prompts are the longest; others have at most an eighth of that.
        median: of the lengths of continuations, in tokens.
        spread: standard deviation of their logarithms.
        longest: of the continuations.
        new_tokens: of every continuation, where lengths are not sampled.
        checked: how many continuations are generated again, each alone.
        block: tokens of a block.
        contexts: memory, in whole contexts of 2,048 tokens.
        sharing: whether blocks are found again.
        common: tokens that all prompts begin with.
        vocabulary: of the model with random weights.
        width: of the residual stream.
        layers: number of blocks.
        proposals: draft tokens of a sequence in a step.
        draft_width: of the smaller model.
        draft_layers: of the same.
        length: tokens of a window in training.
        step_tokens: tokens of a batch.
        steps: optimiser steps.
        learning_rate: at its peak.
        draws: continuations that are sampled for the test of the distribution.
    """

    task: Literal["arrivals", "memory", "prefixes", "draft", "lookup", "quantised"]
    scheduling: Literal["continuous", "static"] = "continuous"
    load: float = 0.25
    requests: int = 100
    texts: int = 16
    pass_tokens: int = 64
    prompt: int = 32
    long_prompts: float = 0.0
    median: float = 16.0
    spread: float = 1.3
    longest: int = 256
    new_tokens: int = 16
    checked: int = 4
    block: int = 16
    contexts: int = 16
    sharing: bool = False
    common: int = 0
    vocabulary: int = 4096
    width: int = 384
    layers: int = 8
    proposals: int = 4
    draft_width: int = 32
    draft_layers: int = 1
    length: int = 128
    step_tokens: int = 1024
    steps: int = 200
    learning_rate: float = 8e-3
    draws: int = 600
