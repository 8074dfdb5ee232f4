"""Towards Efficient Generative Large Language Model Serving: a survey (Miao et al. 2023), as an engine and a server."""

from .batch import EngineBatch
from .blocks import BlockPool, BlockTable, OutOfBlocksError
from .engine import Engine
from .limits import Limits
from .requests import (
    Gathered,
    Listener,
    LogProbabilities,
    QueueFullError,
    RefusedError,
    Request,
    Statistics,
    StoppedError,
    TimeLimitError,
)
from .scheduler import Scheduler, StaticScheduler
from .speculation import Draft, DraftToken, ModelDraft, NGramDraft, accept

__all__ = [
    "BlockPool",
    "BlockTable",
    "Draft",
    "DraftToken",
    "Engine",
    "EngineBatch",
    "Gathered",
    "Limits",
    "Listener",
    "LogProbabilities",
    "ModelDraft",
    "NGramDraft",
    "OutOfBlocksError",
    "QueueFullError",
    "RefusedError",
    "Request",
    "Scheduler",
    "StaticScheduler",
    "Statistics",
    "StoppedError",
    "TimeLimitError",
    "accept",
]
