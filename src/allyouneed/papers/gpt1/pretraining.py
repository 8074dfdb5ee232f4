"""Pre-training as a stage: the language model of a seed is made once, and all its fine-tunings read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file

from allyouneed.data.batches import RandomWindows
from allyouneed.evidence import Context, Stage
from allyouneed.training import Cosine, TrainingConfig, next_token_loss, train

from .fine_tuning import Body
from .gpt1 import GPT1, GPT1Config
from .recurrent import RecurrentLanguageModel
from .tasks import corpus

WARM_UP = 0.3
"""Share of the steps of pre-training: with a tenth a post-norm model learns little at rates that are good otherwise."""
PARTS = (0, 1, 2, 4, 8)
"""Eighths of pre-training after which the weights are kept, each twice the one before; first the initial weights."""


@dataclass(frozen=True)
class PretrainingConfig:
    """What is pre-trained.

    Attributes:
        model: the transformer, or LSTM cells with as many parameters.
        learning_rate: at its peak.
        vocabulary: byte pairs, learned from the unlabelled text.
        share: of each novel and address that is read.
        width: of embeddings, and of the transformer's residual stream.
        layers: blocks.
        heads: attention heads.
        cells: LSTM layers.
        cell_width: width of their states, by which both models have as many parameters.
        length: tokens of a row, in pre-training and in fine-tuning.
        batch: rows of a step.
        steps: of pre-training, at least 8.

    Raises:
        ValueError: too few steps to keep the weights of each part.
    """

    model: Literal["transformer", "lstm"]
    learning_rate: float
    vocabulary: int
    share: float
    width: int
    layers: int
    heads: int
    cells: int
    cell_width: int
    length: int
    batch: int
    steps: int

    def __post_init__(self) -> None:
        if self.steps < PARTS[-1]:
            raise ValueError(
                f"steps is {self.steps}: there must be {PARTS[-1]} or more, to keep weights of each eighth"
            )

    @property
    def deviation(self) -> float:
        """Of initial weights: about the paper's 0.02 at its width of 768."""
        return self.width**-0.5 / 2

    def build(self, tokens: int, dropout: float) -> Body:
        """Build a new model over so many tokens."""
        if self.model == "lstm":
            return RecurrentLanguageModel(
                tokens, self.width, self.cell_width, layers=self.cells, dropout=dropout, deviation=self.deviation
            )
        return GPT1(
            GPT1Config(
                vocabulary=tokens,
                positions=self.length,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                embedding_dropout=dropout,
                attention_dropout=dropout,
                residual_dropout=dropout,
                deviation=self.deviation,
            )
        )

    def load(self, folder: Path, part: int = PARTS[-1]) -> Body:
        """Read the weights that were kept after so many eighths of the steps."""
        body = self.build(self.vocabulary, 0.0)
        body.load_state_dict(load_file(folder / f"{part}.safetensors"))
        return body


def make(config: PretrainingConfig, context: Context) -> None:
    """Train a language model on the unlabelled text, and keep its weights along the way."""
    source = corpus(config.vocabulary, config.share)
    model = config.build(config.vocabulary, 0.0)
    due = {config.steps * part // PARTS[-1]: part for part in PARTS}

    def log(step: int, steps: int, **values: float) -> None:
        context.log(step, steps, **values)
        if step in due:
            keep(due[step])

    def keep(part: int) -> None:
        path = context.folder / f"{part}.safetensors"
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    if not (context.folder / "0.safetensors").exists():
        keep(0)
    train(
        model,
        RandomWindows(source.tokens, config.length, config.batch, context.seed),
        next_token_loss,
        TrainingConfig(
            config.steps,
            config.learning_rate,
            schedule=Cosine(warmup=max(1, int(WARM_UP * config.steps))),
            weight_decay=0.01,
            betas=(0.9, 0.999),
        ),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )


PRETRAINED = Stage("gpt1_pretrained", make)
