"""What the server counts and times, in Prometheus' format."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .engine import Engine
from .requests import FinishReason, Listener, LogProbabilities

_PREFIX = "allyouneed"
_FIRST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_NEXT_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
# Of `Statistics`: what only grows, and what comes and goes.
_COUNTERS = {
    "steps": "Forward passes of the model.",
    "computed_tokens": "Tokens in these passes.",
    "cache_hit_tokens": "Tokens whose keys and values were in the cache.",
    "generated_tokens": "Tokens of answers.",
    "draft_tokens": "Tokens that were proposed by speculation.",
    "accepted_tokens": "Draft tokens that were accepted.",
    "preemptions": "Times that a sequence lost its blocks to another.",
}
_GAUGES = {
    "running": "Sequences that are computed.",
    "waiting": "Sequences that wait.",
    "allocated_blocks": "Blocks of the cache that sequences hold.",
    "total_blocks": "Blocks of the cache.",
}


class _EngineCollector(Collector):
    """Reads an engine's statistics whenever somebody asks."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        statistics = self._engine.statistics
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=getattr(statistics, name))
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=getattr(statistics, name))


class Metrics:
    """Counts requests by route and status, times tokens, and reads the engine's statistics.

    Args:
        engine: whose statistics.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self.requests = Counter(
            f"{_PREFIX}_requests", "Requests over HTTP.", ("route", "status"), registry=self._registry
        )
        self.first_token = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST_SECONDS,
            registry=self._registry,
        )
        self.inter_token = Histogram(
            f"{_PREFIX}_inter_token_seconds",
            "Between two tokens of a sequence.",
            buckets=_NEXT_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Write everything down."""
        return generate_latest(self._registry)

    def timed(self, listener: Listener) -> "TimedListener":
        """Time what a listener is told, from now on."""
        return TimedListener(self, listener)


class TimedListener:
    """Tells another listener what it is told, and times tokens.

    Args:
        metrics: where times are kept.
        listener: the other.
    """

    def __init__(self, metrics: Metrics, listener: Listener):
        self._metrics = metrics
        self._listener = listener
        self._arrived = time.perf_counter()
        self._last: dict[int, float] = {}

    def prefilled(self, cached_tokens: int, logprobs: Sequence[LogProbabilities]) -> None:
        """See `Listener`."""
        self._listener.prefilled(cached_tokens, logprobs)

    def token(self, choice: int, token: int, logprobs: LogProbabilities | None) -> object:
        """See `Listener`."""
        now = time.perf_counter()
        if choice in self._last:
            self._metrics.inter_token.observe(now - self._last[choice])
        elif not self._last:
            self._metrics.first_token.observe(now - self._arrived)
        self._last[choice] = now
        return self._listener.token(choice, token, logprobs)

    def ended(self, choice: int, reason: FinishReason) -> None:
        """See `Listener`."""
        self._listener.ended(choice, reason)

    def failed(self, error: Exception) -> None:
        """See `Listener`."""
        self._listener.failed(error)
