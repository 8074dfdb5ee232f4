"""Initial weights: appendix E, and where it cannot be followed, what the released models began with."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class _Model(Protocol):
    """What `Rwkv` is here: its parts."""

    embedding: nn.Embedding
    blocks: nn.ModuleList
    head: nn.Linear | None


@torch.no_grad()
def initialise(model: _Model) -> None:
    """Set all weights of a model.

    As in appendix E: embeddings of ±1e-4 before a norm (section 3.4); how much of the current token each channel is
    mixed of; decays spread over the channels, more of them slow the higher the layer; a bonus that alternates.

    Not as there: its matrices. It gives W_o of time-mixing and W_v of channel-mixing random numbers, and zero to all
    others. Channel-mixing could then never learn: its keys would be 0, where the squared ReLU has no slope. As in the
    released training code, what a branch *ends* in is zero instead (W_o and W_v), and so are keys and receptances of
    time-mixing and the receptance of channel-mixing; so every block begins as the identity. What is left (values of
    time-mixing, keys of channel-mixing, the output projection) is orthogonal, larger where it has more outputs.
    """
    nn.init.uniform_(model.embedding.weight, -1e-4, 1e-4)
    if model.head is not None:
        _orthogonal(model.head, 0.5)
    width, layers = model.embedding.embedding_dim, len(model.blocks)
    places = torch.arange(width) / width
    blocks: Any = model.blocks
    for layer, block in enumerate(blocks):
        time, channel = block.time_mixing, block.channel_mixing
        # From 0 in the first layer to 1 in the last.
        height = layer / (layers - 1) if layers > 1 else 0.0
        current = places ** (1 - layer / layers)
        time.mix_key.copy_(current)
        time.mix_value.copy_(current + 0.3 * height)
        time.mix_receptance.copy_(0.5 * current)
        channels = len(time.bonus)
        ramp = torch.arange(channels) / max(1, channels - 1)
        time.decay_logarithm.copy_(-5 + 8 * ramp ** (0.7 + 1.3 * height))
        time.bonus.copy_(0.5 * ((torch.arange(channels) + 1) % 3 - 1) + math.log(0.3))
        for linear in (time.key, time.receptance, time.output, channel.receptance, channel.value):
            nn.init.zeros_(linear.weight)
        _orthogonal(time.value)
        channel.mix_key.copy_(current)
        channel.mix_receptance.copy_(current)
        _orthogonal(channel.key)


def _orthogonal(linear: nn.Linear, gain: float = 1.0) -> None:
    if linear.weight.is_meta:
        return
    outputs, inputs = linear.weight.shape
    nn.init.orthogonal_(linear.weight, gain * math.sqrt(max(1.0, outputs / inputs)))
