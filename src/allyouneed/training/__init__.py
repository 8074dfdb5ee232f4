"""One training loop for all rooms, on Lightning Fabric: schedules, clipping, checkpoints, 16 bits, evaluation."""

from .averaging import Snapshots, average
from .checkpoint import Checkpoint, CheckpointError
from .config import TrainingConfig
from .loop import TrainingResult, evaluate, train
from .losses import Batch, LanguageModel, Loss, LossFunction, next_token_loss
from .memory import peak_tensor_bytes
from .schedules import Constant, Cosine, InverseSquareRoot, Linear, Schedule
from .stepping import DivergedError

__all__ = [
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "Constant",
    "Cosine",
    "DivergedError",
    "InverseSquareRoot",
    "LanguageModel",
    "Linear",
    "Loss",
    "LossFunction",
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
