"""The dense model: what Switches are compared with, and what upcycling and further dense training begin with."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allyouneed.data import Split
from allyouneed.data.batches import RandomWindows
from allyouneed.data.tokens import corpus_tokens, corpus_windows
from allyouneed.evidence import Context, Stage
from allyouneed.evidence.watching import train_watched
from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, RotaryPositions, initialise_xavier
from allyouneed.training import Cosine, TrainingConfig, next_token_loss

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """What is trained first: the arms that begin with it share one such training a seed.

    Attributes:
        width: of the residual stream.
        hidden: inner width of the feed-forward layer, and of each expert that takes its place.
        layers: number of blocks.
        heads: number of attention heads.
        length: tokens that a model is given.
        vocabulary: 256 reads bytes; more is a byte-pair vocabulary learned from the training text.
        step_tokens: tokens in a batch.
        dense_steps: optimiser steps of the dense model.
        dense_rate: its learning rate at the peak.
        evaluations: how often a model is scored while it trains.
        watched_tokens: targets of these scores, from the validation split, half from a novel, half from addresses.
    """

    width: int = 32
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 64
    vocabulary: int = 256
    step_tokens: int = 1024
    dense_steps: int = 1500
    dense_rate: float = 2.4e-2
    evaluations: int = 16
    watched_tokens: int = 16_384

    @property
    def dense(self) -> "DenseConfig":
        """What decides the dense model, and nothing else."""
        return DenseConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DenseConfig)})

    def build(self, feed_forward: Callable[[], nn.Module] | None = None) -> Decoder:
        """Compose a decoder; its feed-forward layers are dense, or what is given.

        Embeddings are multiplied by √width (Vaswani et al. 2017, section 3.4) in every arm: without, the first
        thousand steps go to what embeddings have to grow.
        """
        blocks = [
            Block(
                PreNorm(Attention(self.width, self.heads), nn.LayerNorm(self.width)),
                PreNorm(nn.Identity(), nn.LayerNorm(self.width)),
            )
            for _ in range(self.layers)
        ]
        model = Decoder(
            self.vocabulary,
            self.width,
            blocks,
            positions=RotaryPositions(self.width // self.heads),
            norm=nn.LayerNorm(self.width),
            embedding_scale=math.sqrt(self.width),
        )
        # Sampled after what all arms share, so that a seed gives that the same initial weights in every arm.
        for block in blocks:
            residual: Any = block.feed_forward
            residual.sublayer = FeedForward(self.width, self.hidden) if feed_forward is None else feed_forward()
            initialise_xavier(residual.sublayer)
        return model

    def batches(self, seed: int) -> RandomWindows:
        """Give the training text of a seed; all arms read the same."""
        text = torch.cat(corpus_tokens(self.vocabulary, "train"))
        return RandomWindows(text, self.length, self.step_tokens // self.length, seed)

    def held_out(self, split: Split, targets: int) -> list[Tensor]:
        """Give the windows that every arm is scored on, in batches."""
        return corpus_windows(self.vocabulary, split, self.length, self.step_tokens // self.length, targets)


def training(steps: int, learning_rate: float) -> TrainingConfig:
    """Say how to train: all arms alike but for steps and rate."""
    return TrainingConfig(steps, learning_rate, schedule=Cosine(warmup=max(1, int(WARM_UP * steps))))


def make(config: DenseConfig, context: Context) -> None:
    """Train the dense model of a seed, and keep its weights and its curve."""
    model = config.build()
    curve, _ = train_watched(
        model,
        config.batches(context.seed),
        next_token_loss,
        training(config.dense_steps, config.dense_rate),
        config.held_out("validation", config.watched_tokens),
        next_token_loss,
        config.evaluations,
        context,
    )
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, context.folder / "model.safetensors")
    (context.folder / "scores.json").write_text(json.dumps(curve), encoding="utf-8")


DENSE = Stage("moe_explained_dense", make)


def load(config: DenseConfig, folder: Path) -> tuple[Decoder, dict[int, float]]:
    """Read a trained dense model, and its scores by step."""
    model = config.build()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return model, {int(step): loss for step, loss in scores.items()}
