"""Metrics for Prometheus, in a registry of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LONG = (*SHORT, 20, 60, 120, 300)


class Metrics:
    """Counters and histograms of requests and tokens, and the engine's `status` as gauges."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "synthe_http_requests", "HTTP requests.", ["method", "path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "synthe_http_request_seconds", "Duration of a request.", ["path"], buckets=LONG, registry=registry
        )
        self.first = Histogram(
            "synthe_time_to_first_token_seconds", "Time to first token.", ["model"], buckets=LONG, registry=registry
        )
        self.between = Histogram(
            "synthe_time_between_tokens_seconds", "Time between tokens.", ["model"], buckets=SHORT, registry=registry
        )
        self.prompt = Counter("synthe_prompt_tokens", "Prompt tokens.", ["model"], registry=registry)
        self.cached = Counter("synthe_cached_tokens", "Cached prompt tokens.", ["model"], registry=registry)
        self.written = Counter("synthe_written_tokens", "Output tokens.", ["model"], registry=registry)
        self.finished = Counter("synthe_finished", "Finished sequences.", ["model", "reason"], registry=registry)
        registry.register(_Status(status))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Status(Collector):
    """The numbers of a status as gauges: `cache: {hits}` is synthe_engine_cache_hits. Mappings by model have the label
    `model`."""

    BY_MODEL = ("state_bytes_per_sequence",)

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for name, value in _flat("synthe_engine", self._status()):
            if isinstance(value, Mapping):
                family = GaugeMetricFamily(name, "Status of the engine, by model.", labels=["model"])
                for model, number in value.items():
                    family.add_metric([str(model)], float(number))
                yield family
            else:
                yield GaugeMetricFamily(name, "Status of the engine.", value=float(value))


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}_{key}"
        if isinstance(value, Mapping) and key not in _Status.BY_MODEL:
            yield from _flat(name, value)
        elif isinstance(value, (int, float, Mapping)):
            yield name, value
