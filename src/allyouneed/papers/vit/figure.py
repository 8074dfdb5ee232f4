"""The figure: accuracy over training images (Figures 3 and 4), kinds of positions (Table 8), the grid (Figure 7)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import COLOURS, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = ("few", "some", "more", "all")
"""The arms that differ in their number of images."""
EVERY = 50_000
"""Images where an arm takes all."""
MODELS: Mapping[str, tuple[str, str]] = {"vit": ("ViT", COLOURS[0]), "resnet": ("ResNet", COLOURS[1])}
KINDS: Mapping[str, str] = {
    "none": "none",
    "all": "1-D",
    "axes": "2-D",
    "relative": "relative",
    "hybrid": "1-D,\nhybrid",
}
"""The arms that take all images and differ in the Vision Transformer."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw accuracy over the number of images, accuracy by kind of positions, and how alike positions are."""
    drawn, (over_images, kinds, grid) = panels(3)
    sizes = [trial for trial in trials if trial.arm in SIZES]
    # A trial has a result of each model: as curves they are arms of their own.
    curves = [
        TrialResult(
            model, seed, {}, {str(images_of(one)): accuracy(one, model) for one in sizes if one.seed == seed}, {}, 0
        )
        for model in MODELS
        for seed in sorted({one.seed for one in sizes})
    ]
    draw_curves(
        over_images,
        curves,
        lambda result: {float(x): y for x, y in result.metrics.items()},
        names={model: name for model, (name, _) in MODELS.items()},
        horizontal="different images of digits trained on",
        vertical="test accuracy, %",
        title="MNIST, equal compute",
        logarithmic="x",
        finish=lambda axes: finish_images(axes, trials),
    )
    draw_kinds(kinds, trials)
    draw_grid(grid, trials)
    return drawn


def images_of(trial: TrialResult) -> float:
    """Read the number of images that an arm is trained on."""
    return float(trial.config["images"] or EVERY)


def accuracy(trial: TrialResult, model: str) -> float:
    """Read the accuracy of a trial's model."""
    return trial.metrics[f"{model}_accuracy"]


def finish_images(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Mark what came out after pre-training on clothes, and write numbers of images in full."""
    for model, (name, colour) in MODELS.items():
        label: str | None = f"{name}, pre-trained on clothes"
        for trial in trials:
            if trial.arm == "pretrained":
                axes.plot(
                    [images_of(trial)],
                    [accuracy(trial, model)],
                    "*",
                    color=colour,
                    markersize=10,
                    alpha=0.55,
                    label=label,
                )
                label = None
    sizes = sorted({images_of(trial) for trial in trials if trial.arm in SIZES})
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")


def draw_kinds(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Draw accuracy by kind of positions: each seed a dot, the mean a bar."""
    for place, arm in enumerate(KINDS):
        own = [trial.metrics["vit_accuracy"] for trial in trials if trial.arm == arm]
        if not own:
            continue
        axes.plot([place] * len(own), own, "o", color=COLOURS[0], alpha=0.5, markersize=5)
        axes.plot([place - 0.25, place + 0.25], [sum(own) / len(own)] * 2, color=COLOURS[0], linewidth=2.5)
    axes.set_xticks(range(len(KINDS)), list(KINDS.values()))
    axes.set_xlabel("positions")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("ViT, all images", loc="left", fontsize=11)
    axes.grid(True, color="#dddddd", linewidth=0.6)


def draw_grid(axes: Any, trials: Sequence[TrialResult]) -> None:
    """Draw how alike the positions of two patches are by how far apart they lie, after pre-training on clothes."""
    own = [trial.metrics for trial in trials if trial.arm == "pretrained"]
    axes.set_title("Learned positions, clothes", loc="left", fontsize=11)
    if not own:
        return
    places = sorted(tuple(map(int, key.split("_")[1:])) for key in own[0] if key.startswith("similarity_"))
    rows, columns = (max(numbers) + 1 for numbers in zip(*places, strict=True))
    means = [
        [sum(one[f"similarity_{row}_{column}"] for one in own) / len(own) for column in range(columns)]
        for row in range(rows)
    ]
    # A patch is as like itself as can be: where nothing is compared, nothing is drawn.
    means[0][0] = float("nan")
    most = max(abs(value) for row in means for value in row if value == value)
    axes.imshow(means, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    for row, column in places[1:]:
        value = means[row][column]
        shade = "white" if abs(value) > 0.6 * most else "black"
        axes.text(column, row, f"{value:+.2f}", ha="center", va="center", color=shade, fontsize=9)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_xlabel("columns apart")
    axes.set_ylabel("rows apart")
    axes.grid(False)
