"""What is tried: training beside a transformer of the same size, writing text with both, and steps over lengths."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from allyouneed.data import Split
from allyouneed.data.batches import RandomWindows
from allyouneed.data.tokens import corpus_tokens, corpus_windows
from allyouneed.evidence import Context
from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, RotaryPositions
from allyouneed.text import Sampling, continuations
from allyouneed.training import Cosine, TrainingConfig, evaluate, next_token_loss, peak_tensor_bytes, train

from .rwkv import Rwkv, RwkvConfig

Model = Literal["rwkv", "transformer"]
MODELS: tuple[Model, ...] = ("rwkv", "transformer")


@dataclass(frozen=True)
class RwkvTrialConfig:
    """One arm.

    Attributes:
        task: what is tried. `writing` and `stepping` try both models, in turn.
        length: tokens that a model is trained on in a row; that are written; or of a step's one sequence.
        model: what is trained, where one is.
        vocabulary: 256 reads bytes; more is a byte-pair vocabulary learned from the training text.
        width: of the residual stream.
        layers: number of blocks.
        heads: of attention.
        step_tokens: tokens in a batch.
        steps: optimiser steps.
        learning_rate: at its peak; the best of a grid that both models were given (see the readme).
        evaluated_tokens: held-out targets, half from a novel, half from addresses.
        turn: tokens that a model writes before it is the other's turn; a token's time is measured over the last turn.
        repeats: measurements of a step's time, after one that does not count.
    """

    task: Literal["training", "writing", "stepping"]
    length: int
    model: Model = "rwkv"
    vocabulary: int = 256
    width: int = 64
    layers: int = 3
    heads: int = 4
    step_tokens: int = 1024
    steps: int = 1500
    learning_rate: float = 8e-3
    evaluated_tokens: int = 65_536
    turn: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.task == "writing" and (self.turn < 2 or self.length % self.turn):
            raise ValueError(
                f"length {self.length} must be a multiple of the turn, and that 2 or more: it is {self.turn}"
            )


def build(config: RwkvTrialConfig, model: Model) -> Rwkv | Decoder:
    """Compose a model; both have as many weights in matrices.

    RWKV has 13 · width² weights in the matrices of a block: 4 matrices of time-mixing, and 9 times that of one in
    channel-mixing. Attention has 4 matrices too, and the feed-forward layer is given the other 9: with two of them,
    4.5 times as wide inside as outside. Output projections are not tied.
    """
    width = config.width
    if model == "rwkv":
        return Rwkv(RwkvConfig(config.vocabulary, width, config.layers, context=config.length))
    blocks = [
        Block(
            PreNorm(Attention(width, config.heads, bias=False), nn.LayerNorm(width)),
            PreNorm(FeedForward(width, 9 * width // 2), nn.LayerNorm(width)),
        )
        for _ in range(config.layers)
    ]
    positions = RotaryPositions(width // config.heads)
    return Decoder(config.vocabulary, width, blocks, positions=positions, norm=nn.LayerNorm(width), tied=False)


def training(config: RwkvTrialConfig, context: Context, split: Split = "test") -> dict[str, float]:
    """Train a model, and score it on held-out text."""
    model = build(config, config.model)
    text = torch.cat(corpus_tokens(config.vocabulary, "train"))
    batches = RandomWindows(text, config.length, config.step_tokens // config.length, context.seed)
    # No weight decay, and the second β, as in appendix G; for both models.
    how = TrainingConfig(
        config.steps,
        config.learning_rate,
        schedule=Cosine(warmup=config.steps // 10),
        weight_decay=0.0,
        betas=(0.9, 0.99),
    )
    result = train(
        model, batches, next_token_loss, how, fabric=context.fabric, checkpoint=context.checkpoint, log=context.log
    )
    context.costs["step_seconds"] = float(result.step_seconds.median())
    rows = max(1, 4096 // config.length)
    windows = corpus_windows(config.vocabulary, split, config.length, rows, config.evaluated_tokens)
    return {
        "loss": evaluate(model, windows, next_token_loss, fabric=context.fabric),
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "training_tokens": float(config.steps * config.step_tokens),
    }


def held_bytes(cache: Any) -> int:
    """Count the bytes of all memory that the tensors in an object keep; room that is not used counts too."""
    storages: dict[int, int] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)
        elif hasattr(value, "__dict__"):
            collect(list(vars(value).values()))

    collect(cache)
    return sum(storages.values())


def clock(device: torch.device) -> float:
    """Give the time, in seconds: on a CPU that of this process alone, which others on the machine do not lengthen."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def writing(config: RwkvTrialConfig, context: Context) -> dict[str, float]:
    """Let both models write a text, in turns; time them, and count what they carry at the end.

    A token's time after so many others is compared with that of a text which has just begun, one token of each after
    the other: their ratio does not hang on how fast the machine is at the moment. Weights are as they are at first:
    what is written has no sense, and takes as long.
    """
    device = context.fabric.device
    built: dict[Model, Any] = {name: build(config, name).to(device).eval() for name in MODELS}
    # Room for the tokens that will be held, and no more.
    held = {name: model.new_cache(limit=config.length, capacity=config.length) for name, model in built.items()}
    prompt = [int(torch.randint(config.vocabulary, ()))]

    def writer(name: Model, state: Any) -> Iterator[Any]:
        return continuations(
            built[name], [prompt], new_tokens=config.length, sampling=Sampling.greedy(), seed=context.seed, cache=state
        )

    def timed(text: Iterator[Any]) -> float:
        began = clock(device)
        next(text)
        return clock(device) - began

    texts: dict[Model, Iterator[Any]] = {name: writer(name, held[name]) for name in MODELS}
    seconds: dict[Model, list[float]] = {name: [] for name in MODELS}
    over_begun: dict[Model, float] = {}
    for start in range(0, config.length, config.turn):
        for name, text in texts.items():
            if start + config.turn < config.length:
                seconds[name] += [timed(text) for _ in range(config.turn)]
                continue
            begun = writer(name, built[name].new_cache())
            pairs = [(timed(text), timed(begun)) for _ in range(config.turn)]
            seconds[name] += [taken for taken, _ in pairs]
            # The first of a text has what comes before all others to do.
            over_begun[name] = statistics.median(taken / of_begun for taken, of_begun in pairs[1:])
    metrics = {}
    for name, taken in seconds.items():
        turns = [taken[start : start + config.turn] for start in range(0, config.length, config.turn)]
        # The sum of each turn's median: a sum of all would have in it whatever else the machine did meanwhile.
        context.costs[f"{name}_seconds"] = sum(len(turn) * statistics.median(turn) for turn in turns)
        context.costs[f"{name}_milliseconds"] = 1e3 * statistics.median(turns[-1])
        context.costs[f"{name}_over_begun"] = over_begun[name]
        metrics[f"{name}_bytes"] = float(held_bytes(held[name]))
    context.costs["seconds_over_transformer"] = context.costs["rwkv_seconds"] / context.costs["transformer_seconds"]
    # Appendix D: five vectors a layer.
    metrics["numbers_over_5DL"] = metrics["rwkv_bytes"] / (4 * 5 * config.width * config.layers)
    return metrics


def stepping(config: RwkvTrialConfig, context: Context) -> dict[str, float]:
    """Measure time and memory of a forward and backward pass over one sequence."""
    device = context.fabric.device
    built: dict[str, Any] = {name: build(config, name).to(device) for name in MODELS}
    text = corpus_tokens(config.vocabulary, "train")[0]
    window = text[: config.length + 1].long()[None].to(device)

    def passes(model: Any) -> None:
        with context.fabric.autocast():
            next_token_loss(model, window).total.backward()
        model.zero_grad()

    def written_out() -> None:
        # As attention was computed in what the paper compares with: its matrix is held in memory.
        with sdpa_kernel(SDPBackend.MATH):
            passes(built["transformer"])

    ways: dict[str, Callable[[], None]] = {
        "rwkv": lambda: passes(built["rwkv"]),
        "transformer": written_out,
        "fused": lambda: passes(built["transformer"]),
    }
    metrics = {f"{name}_megabytes": peak_tensor_bytes(way, device) / 1e6 for name, way in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.repeats + 1):
        for name, way in ways.items():
            began = clock(device)
            way()
            found[name].append(clock(device) - began)
    context.costs |= {f"{name}_milliseconds": 1e3 * statistics.median(taken[1:]) for name, taken in found.items()}
    return metrics


TASKS = {"training": training, "writing": writing, "stepping": stepping}


def trial(config: RwkvTrialConfig, context: Context) -> Mapping[str, float]:
    """Run one arm's task."""
    return TASKS[config.task](config, context)
