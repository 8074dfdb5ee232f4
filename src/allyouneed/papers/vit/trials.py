"""One trial: a Vision Transformer, and in some arms a ResNet of equal compute, learn from the same images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.data import Split
from allyouneed.data.batches import Shuffled
from allyouneed.data.fashion_mnist import CLOTHES, fashion_mnist
from allyouneed.data.mnist import mnist
from allyouneed.evidence import Context
from allyouneed.training import Linear, Loss, TrainingConfig, evaluate, train

from .heads import ImageClassifier
from .pictures import grid_similarities, leave_exhibits, pixels
from .positions import AxisPositions, Grid, LearnedPositions, PatchPositions, RelativePositions
from .resnet import HybridEmbedding, ResNet, ResNetStem
from .vit import Vit, VitConfig

SIDE = 28
DIGITS = tuple(map(str, range(10)))
EVALUATED = 500
"""Images in a batch of an evaluation."""

Labelled = tuple[UInt8[Tensor, "images 28 28"], Int[Tensor, " images"]]
Positions = Literal["learned", "none", "axes", "relative"]


@dataclass(frozen=True)
class VisionConfig:
    """One arm.

    Attributes:
        images: distinct images of digits that are trained on; all where None.
        positions: of the patches: a learned row (1-D), none, learned axes (2-D), or relative (Table 8).
        stem: channels of the stages of a hybrid's stem; none where empty.
        compared: whether a ResNet learns beside it.
        clothes_steps: steps of pre-training on Fashion-MNIST, after which the positions are measured and pictures of
            them are left; 0 is none.
        steps: of training on digits.
        batch: images in a batch.
        vit_rate: peak learning rate of the Vision Transformer on digits; the best of a grid (see the readme).
        resnet_rate: the ResNet's.
        clothes_vit_rate: the Vision Transformer's on clothes.
        clothes_resnet_rate: the ResNet's.
        decay: AdamW's weight decay (Table 3 has 0.03 to 0.3).
        patch: side of a patch in pixels, or in places of the stem's maps.
        width: of the Vision Transformer.
        layers: its blocks.
        heads: of its attention.
        stages: channels of the ResNet's stages, chosen so that an image costs as much as in the Vision Transformer.
        blocks: of each stage.
        tested: held-out images; all where None.
    """

    images: int | None = None
    positions: Positions = "learned"
    stem: tuple[int, ...] = ()
    compared: bool = False
    clothes_steps: int = 0
    steps: int = 1000
    batch: int = 64
    vit_rate: float = 4e-3
    resnet_rate: float = 32e-3
    clothes_vit_rate: float = 2e-3
    clothes_resnet_rate: float = 8e-3
    decay: float = 0.1
    patch: int = 7
    width: int = 64
    layers: int = 3
    heads: int = 4
    stages: tuple[int, ...] = (12, 28, 60)
    blocks: int = 1
    tested: int | None = None


def build_vit(config: VisionConfig) -> ImageClassifier:
    """Compose the Vision Transformer, under the head of pre-training."""
    labels = CLOTHES if config.clothes_steps else DIGITS
    size = VitConfig(
        image=SIDE,
        patch=config.patch,
        channels=1,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        hidden=2 * config.width,
    )
    embedding = HybridEmbedding(ResNetStem(1, config.stem), config.patch, config.width) if config.stem else None
    side = embedding.grid(SIDE, SIDE)[0] if embedding else SIDE // config.patch
    kinds: Mapping[Positions, Callable[[Grid], PatchPositions]] = {
        "none": lambda grid: PatchPositions(),
        "learned": lambda grid: LearnedPositions(grid, config.width),
        "axes": lambda grid: AxisPositions(grid, config.width),
        "relative": lambda grid: RelativePositions(grid, config.width // config.heads),
    }
    return ImageClassifier(Vit(size, embedding=embedding, positions=kinds[config.positions]((side, side))), labels)


def build_resnet(config: VisionConfig) -> ResNet:
    """Compose the ResNet."""
    return ResNet(ResNetStem(1, config.stages, config.blocks), len(DIGITS))


def flops_per_image(model: nn.Module) -> float:
    """Count the floating-point operations of the matrix products and convolutions that an image costs in training.

    Forward and backward; without fused attention, so that its products are seen as what they are.
    """
    images = torch.zeros(1, 1, SIDE, SIDE, device=next(model.parameters()).device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.zero_grad()
    return float(counter.get_total_flops())


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """Sum the cross-entropies of the labels."""
    images, labels = batch
    return Loss(F.cross_entropy(model(pixels(images)), labels, reduction="sum"), len(labels))


def hits(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """Count the images that are taken for what they are, as if it were a loss."""
    images, labels = batch
    return Loss((model(pixels(images)).argmax(1) == labels).float().sum(), len(labels))


@cache
def digits(split: Split) -> Labelled:
    """Give the digits of a split."""
    return mnist(split)


@cache
def clothes(split: Split) -> Labelled:
    """Give the clothes of a split."""
    return fashion_mnist(split)


def chosen(
    labelled: Labelled, count: int | None, seed: int
) -> tuple[UInt8[Tensor, "drawn 28 28"], Int[Tensor, " drawn"]]:
    """Draw so many of the images without replacement; all where None.

    Raises:
        ValueError: more images than there are.
    """
    images, labels = labelled
    if count is None:
        return images, labels
    if count > len(images):
        raise ValueError(f"images is {count}: there are only {len(images)}")
    places = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[places], labels[places]


class Course:
    """The trainings of a trial one after the other, each with a checkpoint of its own.

    Args:
        config: the arm.
        context: the trial's.
    """

    def __init__(self, config: VisionConfig, context: Context):
        self.config = config
        self.context = context
        self.done = 0
        each = config.steps + config.clothes_steps
        self.steps = each * (1 + config.compared)

    def train(self, model: nn.Module, labelled: Labelled, steps: int, rate: float, name: str) -> float:
        """Train a model in place; give the seconds that it took."""
        training = TrainingConfig(
            steps, rate, schedule=Linear(warmup=steps // 10), weight_decay=self.config.decay, betas=(0.9, 0.999)
        )
        before = self.done

        def log(step: int, steps: int, **values: float) -> None:
            self.context.log(before + step, self.steps, **values)

        result = train(
            model,
            Shuffled(labelled, self.config.batch, self.context.seed),
            classification_loss,
            training,
            fabric=self.context.fabric,
            checkpoint=self.context.further_checkpoint(name),
            log=log,
        )
        self.done += steps
        return result.seconds


def trial(config: VisionConfig, context: Context, split: Split = "test") -> Mapping[str, float]:
    """Train an arm's models and measure them on held-out digits; accuracies are in per cent."""
    course = Course(config, context)
    few = chosen(digits("train"), config.images, context.seed)
    held_out = batches_of(digits(split), config.tested)
    metrics: dict[str, float] = {}

    def learn_clothes(model: nn.Module, name: str, rate: float) -> None:
        course.train(model, clothes("train"), config.clothes_steps, rate, f"{name}_clothes")
        seen = batches_of(clothes(split), config.tested)
        metrics[f"{name}_clothes_accuracy"] = 100 * evaluate(model, seen, hits, fabric=context.fabric)

    def learn_digits(model: nn.Module, name: str, rate: float) -> None:
        metrics[f"{name}_megaflops"] = flops_per_image(model) / 1e6
        metrics[f"{name}_parameters"] = float(sum(weight.numel() for weight in model.parameters()))
        context.costs[f"{name}_seconds"] = course.train(model, few, config.steps, rate, f"{name}_digits")
        metrics[f"{name}_accuracy"] = 100 * evaluate(model, held_out, hits, fabric=context.fabric)
        metrics[f"{name}_loss"] = evaluate(model, held_out, classification_loss, fabric=context.fabric)

    vit = build_vit(config)
    if config.clothes_steps:
        learn_clothes(vit, "vit", config.clothes_vit_rate)
        metrics |= found_grid(vit)
        leave_exhibits(vit, *clothes(split), context)
        vit = vit.for_task(DIGITS)
    learn_digits(vit, "vit", config.vit_rate)
    if not config.clothes_steps:
        metrics |= found_grid(vit)
    if config.compared:
        # The same first numbers, whatever the Vision Transformer drew.
        torch.manual_seed(context.seed)
        resnet = build_resnet(config)
        if config.clothes_steps:
            learn_clothes(resnet, "resnet", config.clothes_resnet_rate)
            resnet = resnet.for_task(len(DIGITS))
        learn_digits(resnet, "resnet", config.resnet_rate)
        metrics["gap"] = metrics["resnet_accuracy"] - metrics["vit_accuracy"]
    return metrics


def batches_of(labelled: Labelled, count: int | None) -> list[tuple[Tensor, ...]]:
    """Cut the first images of a held-out set into batches."""
    return list(zip(*(tensor[:count].split(EVALUATED) for tensor in labelled), strict=True))


def found_grid(model: ImageClassifier) -> dict[str, float]:
    """Measure the positions where they are learned ones of a row of patches."""
    positions = model.vit.positions
    return grid_similarities(positions) if isinstance(positions, LearnedPositions) else {}
