"""The figure: Figure 2's accesses over the block size, and Figure 3's time and memory over the length."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = ("block_x1", "block_x2", "block_x4", "block_x8")
"""The arms at the setting of Figure 2; of 64, 128, 256 and 512 keys at the laptop scale."""
MULTIPLES = {1: "tokens_x1", 2: "tokens_x2", 4: "tokens_x4", 8: "tokens_x8", 16: "tokens_x16"}
"""The arms that are timed, by how many times the shortest length they have."""
READ_OFF = {64: 6.58, 128: 3.38, 256: 1.76, 512: 0.94}
"""Gigabytes of the forward pass by block size, read off the paper's Figure 2."""

Point = Callable[[TrialResult], tuple[float, float]]


def across(trials: Sequence[TrialResult], arms: Sequence[str], lines: Mapping[str, Point]) -> list[TrialResult]:
    """Give a result for each line and seed, with a point of every arm as its metrics."""
    drawn = []
    for line, point in lines.items():
        for seed in sorted({trial.seed for trial in trials if trial.arm in arms}):
            own = [point(trial) for trial in trials if trial.arm in arms and trial.seed == seed]
            drawn.append(TrialResult(line, seed, {}, {str(x): y for x, y in own}, {}, 0.0))
    return drawn


def points(result: TrialResult) -> dict[float, float]:
    """Give the points of a line."""
    return {float(x): y for x, y in result.metrics.items()}


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw three panels."""
    drawing, (left, middle, right) = panels(3)

    def counted(result: TrialResult) -> tuple[float, float]:
        return result.metrics["block_size"], result.metrics["forward_gigabytes"]

    def read_off(axes: Any) -> None:
        axes.plot(list(READ_OFF), list(READ_OFF.values()), "k:", marker="x", label="measured (Figure 2, read off)")
        axes.set_ylim(bottom=0)
        axes.set_xticks(list(READ_OFF), [str(block) for block in READ_OFF])
        axes.legend()

    draw_curves(
        left,
        across(trials, BLOCKS, {"counted": counted}),
        points,
        names={"counted": "counted"},
        title="Accesses of the forward pass",
        horizontal="block size (keys)",
        vertical="read and written (GB)",
        logarithmic="x",
        finish=read_off,
    )

    def timed(way: str) -> Point:
        return lambda result: (result.config["length"], result.costs[f"{way}_milliseconds"])

    def held(way: str) -> Point:
        return lambda result: (result.config["length"], result.metrics[f"{way}_megabytes"])

    arms = tuple(MULTIPLES.values())
    lengths = sorted({result.config["length"] for result in trials if result.arm in arms})

    def ticks(axes: Any) -> None:
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()

    names = {"plain": "written out", "tiled": "FlashAttention", "fused": "torch's fused kernel"}
    names["block_sparse"] = "block-sparse FlashAttention"
    draw_curves(
        middle,
        across(trials, arms, {way: timed(way) for way in names}),
        points,
        names=names,
        title="Time, forward and backward",
        horizontal="length (tokens)",
        vertical="milliseconds",
        logarithmic="xy",
        finish=ticks,
    )
    draw_curves(
        right,
        across(trials, arms, {way: held(way) for way in ("plain", "tiled")}),
        points,
        names={way: names[way] for way in ("plain", "tiled")},
        title="Memory, forward and backward",
        horizontal="length (tokens)",
        vertical="megabytes",
        logarithmic="xy",
        finish=ticks,
    )
    return drawing
