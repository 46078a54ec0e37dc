"""Metrics for Prometheus, in a registry of the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LONG = (*SHORT, 20, 60, 120, 300)


class Metrics:
    """Counters and histograms of requests and tokens, and the engine's `status` as gauges: of all, and of each owner.

    status: the figures of an owner's requests, of all for the owner "".
    """

    def __init__(self, status: Callable[[str], Mapping[str, Any]]) -> None:
        self._status = status
        self._total = _Figures(lambda: status(""))
        self._owned: dict[str, _Figures] = {}
        self._lock = threading.Lock()

    def add(self, owner: str, name: str, *labels: str, by: float = 1) -> None:
        """Adds to a counter: to that of all, and to the owner's."""
        for figures in self._figures(owner):
            figures.counters[name].labels(*labels).inc(by)

    def observe(self, owner: str, name: str, *labels: str, seconds: float) -> None:
        """Adds a duration to a histogram: to that of all, and to the owner's."""
        for figures in self._figures(owner):
            figures.histograms[name].labels(*labels).observe(seconds)

    def text(self, owner: str = "") -> bytes:
        """Prometheus' text of an owner's figures, of those of all for the owner ""."""
        return generate_latest(self._figures(owner)[-1].registry)

    def _figures(self, owner: str) -> tuple[_Figures, ...]:
        """Those of all, and of the owner."""
        if not owner:
            return (self._total,)
        with self._lock:
            if owner not in self._owned:
                self._owned[owner] = _Figures(lambda: self._status(owner))
            return self._total, self._owned[owner]


class _Figures:
    """A registry with the figures of all requests, or of one owner's."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = registry = CollectorRegistry()
        self.counters = {
            name: Counter(f"synthe_{name}", text, labels, registry=registry)
            for name, text, labels in (
                ("http_requests", "HTTP requests.", ["method", "path", "status"]),
                ("prompt_tokens", "Prompt tokens.", ["model"]),
                ("cached_tokens", "Cached prompt tokens.", ["model"]),
                ("written_tokens", "Output tokens.", ["model"]),
                ("drafted_tokens", "Drafted output tokens.", ["model"]),
                ("accepted_tokens", "Drafted output tokens that were accepted.", ["model"]),
                ("finished", "Finished sequences.", ["model", "reason"]),
            )
        }
        self.histograms = {
            name: Histogram(f"synthe_{name}_seconds", text, labels, buckets=buckets, registry=registry)
            for name, text, labels, buckets in (
                ("http_request", "Duration of a request.", ["path"], LONG),
                ("time_to_first_token", "Time to first token.", ["model"], LONG),
                ("time_between_tokens", "Time between tokens.", ["model"], SHORT),
            )
        }
        registry.register(_Status(status))


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
