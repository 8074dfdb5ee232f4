"""The trials: a model of some size and block, trained with a given amount of arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from allyouneed.data import Split, austen, state_of_the_union, verses
from allyouneed.data.batches import RandomWindows, consecutive_windows
from allyouneed.evidence import Context
from allyouneed.nn import Attention, Block, Decoder, FeedForward, LearnedPositions, PreNorm, initialise_xavier
from allyouneed.text import BytePairTokenizer, ByteTokenizer, Tokenizer
from allyouneed.training import Cosine, TrainingConfig, evaluate, next_token_loss, train

from .llama import Llama, LlamaConfig, swiglu_hidden

POINTS = 20
"""Parts of a training, of each of which the mean training loss is kept for the figure."""


@dataclass(frozen=True)
class Llama1Config:
    """One arm.

    Attributes:
        block: whose layers the model has.
        width: of the residual stream.
        compute: of the training, in 10¹² floating-point operations; how many tokens that is depends on the model.
        equal: whether LLaMA's feed-forward layers are so much wider that it has as many parameters as GPT-2.
        layers: number of blocks.
        head_width: width of an attention head; as in table 2, wider models have more heads and not wider ones.
        length: tokens that a model is given.
        vocabulary: 256 reads bytes; more is a byte-pair vocabulary learned from the training text.
        step_tokens: tokens in a batch.
        learning_rate: at its peak; the best of a grid that all arms were given (see the readme).
        evaluated_tokens: held-out targets, a third each from a novel, from addresses and from verses.
    """

    block: Literal["llama", "gpt2"]
    width: int
    compute: float
    equal: bool = False
    layers: int = 3
    head_width: int = 12
    length: int = 128
    vocabulary: int = 256
    step_tokens: int = 1024
    learning_rate: float = 8e-3
    evaluated_tokens: int = 98_304

    @property
    def hidden(self) -> int:
        """The inner width of the feed-forward layers."""
        if self.block == "gpt2":
            return 4 * self.width
        return self.equal_hidden if self.equal else swiglu_hidden(self.width, 1)

    @property
    def equal_hidden(self) -> int:
        """The inner width at which LLaMA has as many parameters as GPT-2 of the same width and depth.

        That is 2/3 · 4 · width, and a little for the biases and positions that LLaMA does without.
        """
        spared = self.layers * 11 + self.length + 1
        return round(8 * self.width / 3 + spared / (3 * self.layers))

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of training on one token, forward and backward, in matrix products.

        Each weight of a matrix takes 6, the output projection's too; so do attention's products with each of the tokens
        that a token sees, half of the length on average, twice for each coordinate.
        """
        layer = 4 * self.width + (3 if self.block == "llama" else 2) * self.hidden + self.length
        return 6 * self.width * (self.layers * layer + self.vocabulary)

    @property
    def steps(self) -> int:
        """Optimiser steps that the compute is enough for."""
        return max(1, round(self.compute * 1e12 / (self.flops_per_token * self.step_tokens)))


def build(config: Llama1Config) -> Decoder:
    """Compose the model. Both blocks have tied embeddings and begin with weights drawn alike."""
    if config.block == "llama":
        numbers = LlamaConfig(
            vocabulary=config.vocabulary,
            width=config.width,
            layers=config.layers,
            heads=config.width // config.head_width,
            hidden=config.hidden,
            context=config.length,
            tied=True,
        )
        model: Decoder = Llama(numbers)
        # As GPT-2 below begins, so that the blocks differ in what they are and not in where they start.
        initialise_xavier(model)
        return model
    width, heads = config.width, config.width // config.head_width
    blocks = [
        Block(PreNorm(Attention(width, heads), nn.LayerNorm(width)), PreNorm(FeedForward(width), nn.LayerNorm(width)))
        for _ in range(config.layers)
    ]
    positions = LearnedPositions(config.length, width)
    return Decoder(config.vocabulary, width, blocks, positions=positions, norm=nn.LayerNorm(width))


def texts(split: Split) -> list[str]:
    """Give the novels, the addresses and the English verses of a split."""
    return [austen(split), state_of_the_union(split), "\n".join(english for english, _ in verses(split))]


@cache
def tokens(vocabulary: int, split: Split) -> list[Tensor]:
    """Give the texts of a split, as tokens."""
    tokenizer: Tokenizer = ByteTokenizer() if vocabulary == 256 else byte_pairs(vocabulary)
    return [tokenizer.encode_to_tensor(text) for text in texts(split)]


@cache
def byte_pairs(vocabulary: int) -> BytePairTokenizer:
    """Learn a vocabulary from the training text."""
    return BytePairTokenizer.train(texts("train"), vocabulary)


def held_out(config: Llama1Config, split: Split) -> list[Tensor]:
    """Give the windows that every arm is scored on, in batches."""
    windows = []
    for text in tokens(config.vocabulary, split):
        windows += consecutive_windows(text, config.length, 64, limit=config.evaluated_tokens // 3)
    return windows


def trial(config: Llama1Config, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Train one arm until its compute is spent, as section 2.3 trains, and score it on held-out text."""
    model = build(config)
    batches = RandomWindows(
        torch.cat(tokens(config.vocabulary, "train")), config.length, config.step_tokens // config.length, context.seed
    )
    training = TrainingConfig(
        config.steps,
        config.learning_rate,
        schedule=Cosine(warmup=config.steps // 10, final=0.1),
        weight_decay=0.1,
        betas=(0.9, 0.95),
        clip=1.0,
    )
    result = train(
        model,
        batches,
        next_token_loss,
        training,
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=context.log,
    )
    context.costs["step_seconds"] = float(result.step_seconds.median())
    trained_on = config.steps * config.step_tokens
    metrics = {
        "loss": evaluate(model, held_out(config, split), next_token_loss, fabric=context.fabric),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_tokens": trained_on,
        "training_flops": trained_on * config.flops_per_token,
    }
    for place, part in enumerate(result.losses.tensor_split(POINTS), start=1):
        if len(part):
            metrics[f"training_loss_{place}"] = float(part.mean())
    return metrics
