"""Several texts at once as rows of one batch: requests to the engine, with their outputs as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from synthe_core.errors import WorkError
from synthe_core.inference.async_engine import AsyncEngine, RequestHandle
from synthe_core.inference.outputs import Finished, Output, PrefillFinished, TokenOutput
from synthe_core.inference.request import Request


class Cancelled(WorkError):
    """Nobody waits for the answer any more."""


class Cancellable(Protocol):
    def cancel(self) -> None:
        """Ends the work. For any thread."""


class Cancellation:
    """Ends the generations of one answer, those of now and those to come. For any thread."""

    def __init__(self) -> None:
        self._lock, self._running, self.cancelled = threading.Lock(), list[Cancellable](), False

    def cancel(self) -> None:
        """From now on iterating over a generation raises Cancelled."""
        with self._lock:
            self.cancelled, running = True, list(self._running)
        for each in running:
            each.cancel()

    def watch(self, work: Cancellable) -> None:
        """Cancels the work too, as soon as it is cancelled itself."""
        with self._lock:
            self._running.append(work)
            is_late = self.cancelled
        if is_late:
            work.cancel()


@dataclass
class Generated:
    """What one request has given so far. logprobs, confidences: of its tokens. end: its last output. weights: the
    fingerprints of what generates it, of a mixture one for each request."""

    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    num_cached_tokens: int = 0
    end: Finished | None = None
    weights: tuple[str, ...] = ()

    def push(self, output: Output) -> str:
        """Takes in an output; returns the text that came with it."""
        if isinstance(output, TokenOutput):
            if output.logprob is not None:
                self.logprobs.append(output.logprob.logprob)
            if output.confidence is not None:
                self.confidences.append(output.confidence)
            self.text += output.text
            return output.text
        if isinstance(output, PrefillFinished):
            self.num_cached_tokens = output.num_cached_tokens
        elif isinstance(output, Finished):
            self.end = output
            self.text += output.text
            return output.text
        return ""


class Generation:
    """Requests that run together. Iterating gives (index, new text) of each as it comes, until all have ended; what
    they have given is in `results`. Leaving the context cancels what still runs.

    weights: the requests generate one text together, drawn from the mixture of their distributions; the only result.

    Raises Busy, NotFound and InputError of the engine, with none of the requests started.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        requests: Sequence[Request],
        cancellation: Cancellation,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.results = [Generated() for _ in (requests if weights is None else requests[:1])]
        self._outputs: queue.SimpleQueue[tuple[int, Output]] = queue.SimpleQueue()
        self._handles: list[RequestHandle] = []
        self._cancellation = cancellation
        try:
            if weights is not None:
                self._handles.append(engine.submit_mixture(requests, weights, partial(self._deliver, 0)))
            for index, request in enumerate(requests if weights is None else ()):
                self._handles.append(engine.submit(request, partial(self._deliver, index)))
        except BaseException:
            self.cancel()
            raise
        for result, handle in zip(self.results, self._handles, strict=True):
            result.weights = handle.weights
        cancellation.watch(self)

    def _deliver(self, index: int, output: Output) -> None:
        self._outputs.put((index, output))

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while any(result.end is None for result in self.results):
            index, output = self._outputs.get()
            if text := self.results[index].push(output):
                yield index, text
        if self._cancellation.cancelled:
            raise Cancelled("the answer was cancelled")

    def cancel(self) -> None:
        """Ends what still runs. May be called by any thread; iterating then comes to its end."""
        for handle, result in zip(self._handles, self.results, strict=False):
            if result.end is None:
                handle.cancel()
