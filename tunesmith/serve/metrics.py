"""Figures of a server for Prometheus. Labels are few: a route's template, a status, a model that is served."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunesmith.generate.protocol import LiveGenerator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REFUSALS = {
    401: "token",
    403: "origin",
    408: "slow",
    411: "length",
    413: "size",
    429: "busy",
    503: "unready",
}
_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)


@dataclass
class Record:
    """What the access log says of one request, beside its line."""

    id: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


RECORD: ContextVar[Record | None] = ContextVar("record", default=None)


class Metrics:
    """Counts since the server began."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._engines: WeakValueDictionary[str, LiveGenerator] = WeakValueDictionary()
        self.in_progress = 0

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tunesmith_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, label: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(
                f"tunesmith_{name}", text, (label,), registry=self._registry, buckets=tuple(buckets)
            )

        self._requests = counter("requests", "Requests answered.", "method", "route", "status")
        self._refusals = counter("refusals", "Requests turned away, by why.", "reason")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.", "model")
        self._answer = counter("answer_tokens", "Tokens of answers.", "model")
        self._seconds = histogram("request_seconds", "Until the last byte.", "route", _REQUEST)
        self._first = histogram("first_token_seconds", "From request to first token.", "model", _FIRST)
        self._each = histogram(
            "token_seconds", "Between two tokens of an answer, the mean of each answer.", "model", _TOKEN
        )
        self._registry.register(_Now(self))

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route`: its template, never its path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status in _REFUSALS:
            self._refusals.labels(_REFUSALS[status]).inc()

    def watch(self, model: str, live: LiveGenerator) -> None:
        """How busy this engine is will be told, as long as it is there. `model`: a name that is served."""
        self._engines[model] = live

    def answered(
        self,
        model: str,
        prompt_tokens: int,
        answer_tokens: int,
        *,
        answers: int,
        first_seconds: float | None,
        all_seconds: float,
    ) -> None:
        """A request's answers ended, however they did. Seconds: until the first token, and until the last."""
        self._prompt.labels(model).inc(prompt_tokens)
        self._answer.labels(model).inc(answer_tokens)
        if first_seconds is not None:
            self._first.labels(model).observe(first_seconds)
            if (each := answer_tokens / answers) > 1:
                self._each.labels(model).observe((all_seconds - first_seconds) / (each - 1))
        record = RECORD.get()
        if record is not None:
            record.prompt_tokens += prompt_tokens
            record.answer_tokens += answer_tokens

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def engines(self) -> list[tuple[str, LiveGenerator]]:
        """Those that are watched; several names may share one."""
        return sorted(self._engines.items())


class _Now(Collector):
    """What is asked for at the moment: no counts, but how busy the server is."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        progress = GaugeMetricFamily(
            "tunesmith_requests_in_progress", "Requests not answered to the end yet."
        )
        progress.add_metric([], self._metrics.in_progress)
        kinds = {
            "active": "Answers that are written now.",
            "waiting": "Answers in the engine's queue.",
            "slots": "Most answers that are written side by side.",
        }
        families = {
            kind: GaugeMetricFamily(f"tunesmith_engine_{kind}", text, labels=["model"])
            for kind, text in kinds.items()
        }
        for model, live in self._metrics.engines():
            load = live.load()
            for kind, value in (("active", load.active), ("waiting", load.waiting), ("slots", live.slots)):
                families[kind].add_metric([model], value)
        return [progress, *families.values()]
