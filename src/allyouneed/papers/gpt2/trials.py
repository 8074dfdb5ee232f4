"""The trials: a model of one size is trained and then reads texts of other kinds; strings are encoded and decoded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from allyouneed.data.batches import RandomWindows, consecutive_windows
from allyouneed.evidence import Context
from allyouneed.training import Cosine, TrainingConfig, evaluate, next_token_loss, train

from .byte_pairs import ByteLevelBPE
from .gpt2 import GPT2, GPT2Config
from .strings import every_character, random_strings
from .texts import SEEN, UNSEEN, evaluated_text, training_text


@dataclass(frozen=True)
class ZeroShotConfig:
    """One arm.

    Attributes:
        task: what is done: a model is trained and reads other texts, or strings are encoded and decoded.
        layers: number of blocks.
        width: of the residual stream.
        heads: number of attention heads.
        vocabulary: tokens of the byte-pair vocabulary, which is learned from the training text.
        length: tokens that the model is given.
        step_tokens: tokens in a batch.
        steps: optimiser steps.
        learning_rate: at its peak; the best of a grid that every size was given (see the readme).
        dropout: in the three places where GPT-2 has it.
        stretches: of the training text, evenly spaced; all of them where None.
        evaluated_characters: of each kind of text, in evenly spaced stretches.
        strings: random strings that are encoded and decoded.
    """

    task: Literal["zero-shot", "round trip"] = "zero-shot"
    layers: int = 2
    width: int = 32
    heads: int = 2
    vocabulary: int = 512
    length: int = 128
    step_tokens: int = 512
    steps: int = 2000
    learning_rate: float = 4e-3
    dropout: float = 0.0
    stretches: int | None = 80
    evaluated_characters: int = 65_536
    strings: int = 10_000


def build(config: ZeroShotConfig) -> GPT2:
    """Compose the model: the arms differ in layers, width and heads."""
    return GPT2(
        GPT2Config(
            vocabulary=config.vocabulary,
            positions=config.length,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            embedding_dropout=config.dropout,
            attention_dropout=config.dropout,
            residual_dropout=config.dropout,
        )
    )


@cache
def tokenizer(vocabulary: int, trained_on: int | None) -> ByteLevelBPE:
    """Learn the vocabulary, from the text that is trained on and no other."""
    return ByteLevelBPE.train([training_text(trained_on)], vocabulary)


@cache
def tokens(kind: str, config: ZeroShotConfig) -> Integer[Tensor, " tokens"]:
    """Encode the whole training text, or the text of a kind that models are scored on."""
    encoder = tokenizer(config.vocabulary, config.stretches)
    if kind == "training":
        return encoder.encode_to_tensor(training_text(config.stretches))
    return encoder.encode_to_tensor(evaluated_text(kind, config.stretches, config.evaluated_characters))


def bits_per_byte(model: GPT2, kind: str, config: ZeroShotConfig, context: Context) -> float:
    """Score a model on a kind of text: the information in its bytes, whatever the tokens that they are in.

    Windows do not overlap, so that the first tokens of each are guessed with little before them.
    """
    windows = consecutive_windows(tokens(kind, config), config.length, max(1, 8192 // config.length))
    lengths = tokenizer(config.vocabulary, config.stretches).byte_lengths()
    targets = torch.cat([window[:, 1:].flatten() for window in windows])
    nats = evaluate(model, windows, next_token_loss, fabric=context.fabric) * len(targets)
    return nats / math.log(2) / int(lengths[targets].sum())


def zero_shot(config: ZeroShotConfig, context: Context) -> dict[str, float]:
    """Train a model of one size, then score it on what it saw, on more of the same, and on other kinds of text."""
    model = build(config)
    # What is read is the same for arms of all sizes, so that it is encoded once in a process.
    read = ZeroShotConfig(
        vocabulary=config.vocabulary,
        length=config.length,
        stretches=config.stretches,
        evaluated_characters=config.evaluated_characters,
    )
    batches = RandomWindows(tokens("training", read), config.length, config.step_tokens // config.length, context.seed)
    settings = TrainingConfig(config.steps, config.learning_rate, schedule=Cosine(warmup=config.steps // 10))
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
    scores = {kind: bits_per_byte(model, kind, read, context) for kind in (*SEEN, *UNSEEN)}
    return scores | {
        "gap": scores["test"] / scores["train"] - 1.0,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "passes": config.steps * config.step_tokens / len(tokens("training", read)),
    }


def round_trip(config: ZeroShotConfig, context: Context) -> dict[str, float]:
    """Encode and decode random strings, every character, and the texts that models are scored on."""
    encoder = tokenizer(config.vocabulary, config.stretches)
    read = [evaluated_text(kind, config.stretches, config.evaluated_characters) for kind in (*SEEN, *UNSEEN)]
    tried = changed = 0
    for text in (*random_strings(config.strings, context.seed), *every_character(), *read):
        tried += 1
        changed += encoder.decode(encoder.encode(text)) != text
    context.log(step=1, steps=1)
    return {"strings": tried, "changed": changed}


def trial(config: ZeroShotConfig, context: Context) -> Mapping[str, float]:
    """Do what the arm is for."""
    return (zero_shot if config.task == "zero-shot" else round_trip)(config, context)
