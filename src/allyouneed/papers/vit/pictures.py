"""What a trained model leaves to look at: which positions are alike (Figure 7), what attention gathers (Figure 6)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from allyouneed.evidence import Context
from allyouneed.evidence.figures import svg
from allyouneed.nn import Attention

from .heads import ImageClassifier
from .positions import LearnedPositions
from .vit import Vit


def pixels(images: UInt8[Tensor, "images height width"]) -> Float[Tensor, "images 1 height width"]:
    """Give grey images as numbers from -1 to 1, as the released code does."""
    return images[:, None] / 127.5 - 1.0


def similarities(positions: LearnedPositions) -> Float[Tensor, "patches patches"]:
    """Give the cosine similarity of each patch's position vector to each other's (Figure 7, centre)."""
    vectors = F.normalize(positions.table[0, 1:].detach().double().cpu(), dim=-1)
    return vectors @ vectors.T


def grid_similarities(positions: LearnedPositions) -> dict[str, float]:
    """Measure how far learned positions have found the grid that nothing told them of.

    Returns:
        `in_line`: mean cosine similarity to the other patches of the same row or column, minus the mean to those of
        neither; `nearness`: minus the correlation of similarity with the distance in the image; and
        `similarity_R_C`: the mean over pairs of patches that are R rows and C columns apart. Vectors that know
        nothing of the grid have 0 in expectation in both.
    """
    height, width = positions.grid
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = (places[:, None] - places).abs()
    similar = similarities(positions)
    others = ~torch.eye(len(places), dtype=torch.bool)
    in_line = (apart == 0).any(-1)
    distances = apart.double().norm(dim=-1)
    metrics = {
        "in_line": float(similar[others & in_line].mean() - similar[others & ~in_line].mean()),
        "nearness": -float(torch.corrcoef(torch.stack((similar[others], distances[others])))[0, 1]),
    }
    for rows in range(height):
        for columns in range(width):
            here = (apart[..., 0] == rows) & (apart[..., 1] == columns)
            metrics[f"similarity_{rows}_{columns}"] = float(similar[here].mean())
    return metrics


@torch.no_grad()
def attention_weights(
    model: Vit, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "layers batch heads queries keys"]:
    """Give how much each head of each layer, at each token, looks at each token."""
    seen: list[Tensor] = []
    blocks: list[Any] = list(model.blocks)
    attentions: list[Attention] = [block.attention.sublayer for block in blocks]
    kernels = [attention.kernel for attention in attentions]

    def watched(kernel: Any) -> Any:
        def look(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            # What is mixed with the weights of attention, one-hot, is then the weights themselves: so many keys at a
            # time as a head is wide.
            keys, width = key.shape[2:]
            one_hot = torch.eye(keys, -(-keys // width) * width, dtype=value.dtype, device=value.device)
            parts = [part.expand(*key.shape[:2], -1, -1) for part in one_hot.split(width, 1)]
            weights = torch.cat([kernel(query, key, part, **options) for part in parts], -1)[..., :keys]
            seen.append(weights)
            return weights @ value

        return look

    training = model.training
    model.eval()
    try:
        for attention, kernel in zip(attentions, kernels, strict=True):
            attention.kernel = watched(kernel)
        model(images)
    finally:
        for attention, kernel in zip(attentions, kernels, strict=True):
            attention.kernel = kernel
        model.train(training)
    return torch.stack(seen)


def rollout(
    weights: Float[Tensor, "layers batch heads queries keys"],
) -> Float[Tensor, "batch queries keys"]:
    """Follow attention through all layers (Abnar & Zuidema 2020, section 3; Figure 6 and appendix D.8).

    Weights are averaged over heads; half of each token is handed on by the residual connection.

    Returns:
        How much of each token of the input has arrived at each token; rows sum to 1.
    """
    mean = weights.mean(2)
    layers = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    flow = layers[0]
    for layer in layers[1:]:
        flow = layer @ flow
    return flow


def class_rollout(
    model: Vit, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch rows columns"]:
    """Give how much of each patch has arrived at the class token, as shares of all patches' together."""
    flow = rollout(attention_weights(model, images))[:, 0, 1:]
    grid = model.embedding.grid(*images.shape[2:])
    return (flow / flow.sum(1, keepdim=True)).unflatten(1, grid)


def similarity_figure(positions: LearnedPositions) -> Figure:
    """Draw, at the place of each patch, how similar its position is to every other's (Figure 7, centre)."""
    height, width = positions.grid
    maps = similarities(positions).reshape(height, width, height, width).numpy()
    figure = Figure(figsize=(1.1 * width + 1.2, 1.1 * height + 0.6), layout="constrained")
    shown: Any = None
    for row in range(height):
        for column in range(width):
            axes = figure.add_subplot(height, width, row * width + column + 1)
            shown = axes.imshow(maps[row, column], cmap="viridis", vmin=-1.0, vmax=1.0, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(str(row + 1))
            if row == height - 1:
                axes.set_xlabel(str(column + 1))
    figure.colorbar(shown, ax=figure.axes, label="cosine similarity", shrink=0.8)
    figure.supxlabel("patch's column", fontsize=10)
    figure.supylabel("patch's row", fontsize=10)
    return figure


def rollout_figure(model: Vit, images: Float[Tensor, "batch channels height width"], titles: list[str]) -> Figure:
    """Draw images, and under each what of it has arrived at the class token (Figure 6)."""
    maps = class_rollout(model, images).float().cpu()
    figure = Figure(figsize=(1.3 * len(images), 2.9), layout="constrained")
    for place, (image, flow, title) in enumerate(zip(images.cpu(), maps, titles, strict=True)):
        above = figure.add_subplot(2, len(images), place + 1)
        above.imshow(image[0].numpy(), cmap="gray", interpolation="nearest")
        above.set_title(title, fontsize=9)
        below = figure.add_subplot(2, len(images), len(images) + place + 1)
        below.imshow(flow.numpy(), cmap="viridis", vmin=0.0, interpolation="nearest")
        for axes in (above, below):
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def leave_exhibits(
    model: ImageClassifier,
    images: UInt8[Tensor, "images height width"],
    labels: Int[Tensor, " images"],
    context: Context,
) -> None:
    """Leave pictures: how alike positions are, and rollouts under what the first image of each label is taken for.

    Args:
        model: with learned positions.
        images: held-out ones.
        labels: what they show.
        context: the trial's.
    """
    positions = model.vit.positions
    if isinstance(positions, LearnedPositions):
        context.exhibit("positions.svg", svg(similarity_figure(positions)))
    first = [int((labels == label).nonzero()[0, 0]) for label in labels.unique()]
    shown = pixels(images[first]).to(next(model.parameters()).device)
    with torch.no_grad():
        taken = model.eval()(shown).argmax(1).tolist()
    names = [model.labels[label] for label in taken]
    context.exhibit("rollout.svg", svg(rollout_figure(model.vit, shown, [f"“{name}”" for name in names])))
