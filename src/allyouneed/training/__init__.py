"""One training loop for all rooms, on Lightning Fabric: schedules, clipping, accumulation, checkpoints, evaluation."""

from .averaging import Snapshots, average
from .checkpoint import Checkpoint, CheckpointError
from .loop import DivergedError, LanguageModel, Loss, TrainingConfig, TrainingResult, evaluate, next_token_loss, train
from .memory import peak_tensor_bytes
from .schedules import Constant, Cosine, InverseSquareRoot, Linear, Schedule

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Constant",
    "Cosine",
    "DivergedError",
    "InverseSquareRoot",
    "LanguageModel",
    "Linear",
    "Loss",
    "Schedule",
    "Snapshots",
    "TrainingConfig",
    "TrainingResult",
    "average",
    "evaluate",
    "next_token_loss",
    "peak_tensor_bytes",
    "train",
]
