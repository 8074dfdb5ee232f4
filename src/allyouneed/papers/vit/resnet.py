"""Convolutions: the ResNet that the paper compares with, and its stem of a hybrid (sections 3.1 and 4.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .positions import Grid
from .vit import PatchEmbedding

STRIDE = 2
"""Of the first convolution, and of every stage after the first."""


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1/inputs for each output (Qiao et al. 2019)."""

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Convolve."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * (variance * self.weight[0].numel() + 1e-8).rsqrt()
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


class ResidualBlock(nn.Module):
    """Two convolutions of 3 × 3, each after a group norm and a ReLU, beside an identity (He et al. 2016, figure 4e).

    Args:
        inputs: channels that come.
        outputs: channels that go.
        stride: of the first convolution.
        groups: of the norms.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)])
        self.convolutions = nn.ModuleList(
            [
                StandardisedConv2d(inputs, outputs, 3, stride, 1, bias=False),
                StandardisedConv2d(outputs, outputs, 3, 1, 1, bias=False),
            ]
        )
        changes = stride > 1 or inputs != outputs
        self.shortcut = StandardisedConv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Add what the convolutions find."""
        first = F.relu(self.norms[0](maps))
        kept = maps if self.shortcut is None else self.shortcut(first)
        second = F.relu(self.norms[1](self.convolutions[0](first)))
        return kept + self.convolutions[1](second)


class ResNetStem(nn.Module):
    """The convolutional part of a ResNet as the paper modifies it: group norm and standardised convolutions (BiT).

    Args:
        channels: of the images.
        stages: channels of each stage; all but the first halve the sides of their maps, as the first convolution does.
        blocks: in each stage.
        groups: of the norms; divides every stage's channels.

    Raises:
        ValueError: no stages, or groups that do not divide their channels.
    """

    def __init__(self, channels: int, stages: Sequence[int], blocks: int = 1, groups: int = 4):
        super().__init__()
        if not stages or any(stage % groups for stage in stages):
            raise ValueError(f"stages of {list(stages)} channels cannot be normalised in {groups} groups each")
        self.stride = STRIDE ** len(stages)
        self.outputs = stages[-1]
        layers: list[nn.Module] = [StandardisedConv2d(channels, stages[0], 3, STRIDE, 1, bias=False)]
        inputs = stages[0]
        for place, outputs in enumerate(stages):
            for block in range(blocks):
                layers.append(ResidualBlock(inputs, outputs, STRIDE if place and not block else 1, groups))
                inputs = outputs
        self.layers = nn.Sequential(*layers, nn.GroupNorm(groups, inputs), nn.ReLU())

    def grid(self, height: int, width: int) -> Grid:
        """Give the sides of the maps for images of a size: halved and rounded up as often as there are stages."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Give maps of features."""
        return self.layers(images)


class ResNet(nn.Module):
    """A convolutional classifier: a stem, the average over its maps, and a linear layer to logits that starts at zero.

    Args:
        stem: the convolutions.
        labels: how many classes.
    """

    def __init__(self, stem: ResNetStem, labels: int):
        super().__init__()
        self.stem = stem
        self.classifier = nn.Linear(stem.outputs, labels)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Give each image's logits."""
        return self.classifier(self.stem(images).mean((2, 3)))

    def for_task(self, labels: int) -> "ResNet":
        """Give a model for another task: the same convolutions, under a head that starts at zero."""
        return type(self)(self.stem, labels)


class HybridEmbedding(nn.Module):
    """Patches of a stem's maps of features in place of patches of pixels (section 3.1, "Hybrid Architecture").

    Args:
        stem: what makes the maps.
        patch: side of a patch, in places of a map; with 1, every place is a token.
        width: of the vectors.
    """

    def __init__(self, stem: ResNetStem, patch: int, width: int):
        super().__init__()
        self.stem = stem
        self.patches = PatchEmbedding(stem.outputs, patch, width)

    @property
    def projection(self) -> nn.Conv2d:
        """The projection of patches to vectors."""
        return self.patches.projection

    def grid(self, height: int, width: int) -> Grid:
        """Say how many patches there are in images of a size; errors as in `PatchEmbedding.grid`."""
        return self.patches.grid(*self.stem.grid(height, width))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches model"]:
        """Give the vectors of the patches, row by row."""
        return self.patches(self.stem(images))
