"""Towards Efficient Generative Large Language Model Serving: a survey (Miao et al. 2023), as an engine and a server."""

from .blocks import BlockPool, BlockTable, OutOfBlocksError
from .engine import Engine
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
from .scheduler import Limits, Scheduler, StaticScheduler
from .speculation import Draft, ModelDraft, NGramDraft, Proposal, accept

__all__ = [
    "BlockPool",
    "BlockTable",
    "Draft",
    "Engine",
    "Gathered",
    "Limits",
    "Listener",
    "LogProbabilities",
    "ModelDraft",
    "NGramDraft",
    "OutOfBlocksError",
    "Proposal",
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
