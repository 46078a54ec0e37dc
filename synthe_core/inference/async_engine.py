"""The engine on a thread of its own, for a server: requests from any thread, outputs as they come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.errors import InputError, WorkError
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.model_registry import ModelRegistry
from synthe_core.inference.outputs import Finished, Output, PooledOutput
from synthe_core.inference.prefix_cache import PrefixCache
from synthe_core.inference.request import Busy, QuotaExceeded, Request
from synthe_core.inference.sequence import Sequence as EngineSequence
from synthe_core.inference.sequence import SequenceStatus
from synthe_core.inference.session_store import SessionStore
from synthe_core.inference.validation import check_tokens
from synthe_core.model.session import Session

T = TypeVar("T")
POLL = 0.05  # seconds between two looks at the deadline, when the engine stops


class RequestHandle:
    """A request under way, on its caller's side.

    Outputs, with their text, go to `deliver`, which the engine's thread calls; without it they come by iterating.
    weights: the fingerprints of the model and adapter that it runs with, of a mixture one for each request.
    """

    def __init__(
        self, request: Request, detokenizer: Detokenizer, deliver: Callable[[Output], None] | None = None
    ) -> None:
        self.request = request
        self.weights: tuple[str, ...] = ()
        self.cancelled = False
        self.on_cancel: Callable[[], None] = lambda: None
        self._closed = threading.Event()
        self._outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self._detokenizer = detokenizer
        self._deliver = deliver or self._outputs.put

    def cancel(self) -> None:
        """Gives the request up. It ends before the next step, and a last output comes all the same."""
        self.cancelled = True
        self.on_cancel()

    def process(self, output: Output) -> bool:
        """Passes an output on, with its text; returns whether a stop string has come. A caller that fails gets no more
        outputs, and its request is cancelled."""
        try:
            output = self._detokenizer.process(output)
        except Exception:
            if not isinstance(output, Finished):
                raise  # the engine ends the sequence, and says why
        if not self._closed.is_set():
            if isinstance(output, Finished):
                self._closed.set()
            try:
                self._deliver(output)
            except Exception:
                self._closed.set()
                self.cancel()
        return self._detokenizer.stopped

    def __iter__(self) -> Iterator[Output]:
        while True:
            output = self._outputs.get()
            yield output
            if isinstance(output, Finished):
                return


class AsyncEngine:
    """Serves `models`; use it as a context manager, or `close` it. `options`: those of `Engine`."""

    def __init__(self, models: Sequence[LoadedModel], **options: Any) -> None:
        self._inbox: queue.SimpleQueue[EngineSequence | Callable[[], None]] = queue.SimpleQueue()
        self._saver = ThreadPoolExecutor(1, "sessions")
        self.engine = Engine(models, saver=self._saver, post=self._inbox.put, **options)
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> AsyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def registry(self) -> ModelRegistry:
        return self.engine.registry

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        return self.engine.registry.models

    @property
    def sessions(self) -> SessionStore:
        return self.engine.sessions

    @property
    def prefix_cache(self) -> PrefixCache:
        return self.engine.prefix_cache

    def find(self, name: str, owner: str = "") -> tuple[LoadedModel, str | None]:
        """The model of that name, and the name of its adapter; raises NotFound."""
        resolved = self.registry.resolve(name, owner)
        return resolved.model, resolved.adapter_name

    def submit(self, request: Request, deliver: Callable[[Output], None] | None = None) -> RequestHandle:
        """Starts a request. Raises NotFound, InputError for what the model cannot do, Busy if there is no room."""
        model = self.registry.resolve(request.model, request.owner).model
        if self._deadline is not None:
            raise _stopping()
        handle = RequestHandle(request, _detokenizer(model, request), deliver)
        sequence = self.engine.make_sequence(request, handle.process)
        handle.weights = (sequence.resolved.fingerprints.weights,)
        handle.on_cancel = lambda: self._inbox.put(partial(self.engine.abort, sequence))
        self._inbox.put(sequence)
        return handle

    def submit_mixture(
        self, requests: Sequence[Request], weights: Sequence[float], deliver: Callable[[Output], None] | None = None
    ) -> RequestHandle:
        """Starts requests to one model that generate one text, drawn from the mixture of their distributions; the
        handle is of the first, which has the sampling and stop strings. Raises what `submit` raises, with none started.
        """
        model = self.registry.resolve(requests[0].model, requests[0].owner).model
        if self._deadline is not None:
            raise _stopping()
        handle = RequestHandle(requests[0], _detokenizer(model, requests[0]), deliver)
        sequences = self.engine.make_mixture(requests, weights, handle.process)
        handle.weights = tuple(each.resolved.fingerprints.weights for each in sequences)
        handle.on_cancel = lambda: self._inbox.put(partial(self.engine.abort, sequences[0]))

        def add() -> None:
            for sequence in sequences:
                self.engine.add_sequence(sequence)

        self._inbox.put(add)
        return handle

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` on the engine's thread, between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # it belongs to whoever waits
                future.set_exception(error)

        if not self._thread.is_alive():
            future.set_exception(_stopping())
        self._inbox.put(run)
        return future

    def with_model(
        self, name: str, tokens: Sequence[int], work: Callable[[LoadedModel], T], owner: str = ""
    ) -> Future[T]:
        """Runs `work` on the engine's thread with that model and its adapter, which are to read `tokens`.

        It counts as a request that waits until it has ended. Cancelled before it begins, it does not run.
        Raises NotFound, InputError for tokens that the model cannot read, Busy if there is no room.
        """
        resolved = self.registry.resolve(name, owner)
        check_tokens(tokens, resolved.model)
        admission = self.engine.admission
        admission.check(resolved.model.state_bytes(len(tokens)), owner)

        def run() -> T:
            with resolved.model.activate(resolved.adapter):
                return work(resolved.model)

        def ended(future: Future[T]) -> None:
            admission.dequeue(owner)
            admission.leave(owner)

        admission.enqueue(owner)
        future = self.call(run)
        future.add_done_callback(ended)
        return future

    def embed(self, name: str, texts: Sequence[Sequence[int]]) -> Tensor:
        """float32 [N, D]: the mean over each text's tokens of the last block's output, after the norm."""
        handles: list[RequestHandle] = []
        try:
            for text in texts:
                handles.append(self.submit(Request(name, tuple(text), max_tokens=0, pooling=True)))
            return torch.stack([_pooled(handle) for handle in handles])
        finally:
            for handle in handles:
                handle.cancel()

    def read(self, name: str, tokens: Sequence[int]) -> Session:
        """The session after all of `tokens` but the last. WorkError if they cannot be read to the end; raises what
        `submit` raises."""
        request = Request(name, tuple(tokens), max_tokens=0)
        if self._deadline is not None:
            raise _stopping()
        handle = RequestHandle(request, _detokenizer(self.registry.resolve(name).model, request))
        sequence = self.engine.make_sequence(request, handle.process, keep_state=True)
        self._inbox.put(sequence)
        for output in handle:
            if isinstance(output, Finished) and (output.reason != "length" or sequence.state is None):
                raise WorkError(f"the text could not be read: {output.message or output.reason}")
        return Session(sequence.state, torch.tensor([sequence.last_token_id]))

    def load_adapter(
        self, model_name: str, adapter_name: str, path: Path, owner: str = "", max_adapters: int | None = None
    ) -> None:
        """Serves the adapter at `path` as `model_name:adapter_name` from now on, to `owner` ("": to all).

        Raises QuotaExceeded if the owner has `max_adapters` already.
        """
        model, own = self.find(model_name)
        if own is not None or ":" in adapter_name or "/" in adapter_name or not adapter_name:
            raise InputError("an adapter has a name of its own, on a model without one")

        def check() -> None:
            if f"{model_name}:{adapter_name}" in self.registry.names(owner):
                hint = "unload it first, or choose another name"
                raise InputError(f"{model_name} has an adapter '{adapter_name}' already", hint)
            if max_adapters is not None and self.registry.owned_adapters(owner) >= max_adapters:
                raise QuotaExceeded(f"{max_adapters} adapters are loaded, as many as are allowed", "unload one")

        check()  # before the file is read, and again when nobody else can load one
        adapter = model.read_adapter(path)

        def add() -> None:
            check()
            self._put_adapter(model, adapter_name, adapter, path, owner)

        self.call(add).result()

    def swap_adapter(self, model_name: str, adapter_name: str, path: Path, owner: str = "") -> None:
        """Serves the adapter at `path` in place of the one of that name, from one step to the next.

        Requests that come later have the new one; sequences that use the old one run to their end with it. States and
        sessions belong to the weights that made them, whatever their name. InputError for an adapter that cannot be
        read or does not fit, NotFound where there is none of that name: the old one stays.
        """
        model, _ = self.find(f"{model_name}:{adapter_name}", owner)
        adapter = model.read_adapter(path)

        def swap() -> None:
            self.find(f"{model_name}:{adapter_name}", owner)  # it may be unloaded meanwhile
            self._put_adapter(model, adapter_name, adapter, path, owner)

        self.call(swap).result()

    def _put_adapter(self, model: LoadedModel, name: str, adapter: Adapter, path: Path, owner: str) -> None:
        model.check_adapter(adapter, path)
        if (replaced := self.registry.put_adapter(model, name, adapter, owner)) is not None:
            self.prefix_cache.drop_model(replaced.fingerprints.weights)
            self.engine.detach_unused(model)

    def unload_adapter(self, model_name: str, adapter_name: str, owner: str = "") -> None:
        """Removes an adapter of this owner; sequences that use it run to their end."""
        model, _ = self.find(f"{model_name}:{adapter_name}", owner)

        def unload() -> None:
            removed = self.registry.remove_adapter(model, adapter_name, owner)
            self.prefix_cache.drop_model(removed.fingerprints.weights)
            self.engine.detach_unused(model)

        self.call(unload).result()

    def status(self, owner: str = "") -> dict[str, Any]:
        """Figures by name; see `Engine.status`."""
        return self.engine.status(owner)

    def close(self, deadline: float = 10.0) -> None:
        """Lets running sequences finish within `deadline` seconds, cuts off the rest, saves sessions, and stops.

        Called again, it may shorten the time.
        """
        end = time.monotonic() + deadline
        if self._deadline is None or end < self._deadline:
            self._deadline = end
            self._inbox.put(_wake)
        self._thread.join()
        self._saver.shutdown(wait=True)

    # The engine's thread

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._deadline is None or self.engine.has_unfinished:
                self._receive()
                if self._deadline is not None:
                    self._shut_down()
                self.engine.step()
        finally:
            self._deadline = time.monotonic()  # also after an error: nobody waits for ever
            self._shut_down()
            while not self._inbox.empty():  # what has come too late
                self._handle(self._inbox.get())
                self._shut_down()
            self.engine.prefix_cache.close()

    def _receive(self) -> None:
        """Handles what has arrived; waits for something if there is nothing to do."""
        is_idle = not self.engine.has_work
        try:
            if is_idle:
                self._handle(self._inbox.get(timeout=None if self._deadline is None else POLL))
            while True:
                self._handle(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _handle(self, arrival: EngineSequence | Callable[[], None]) -> None:
        if isinstance(arrival, EngineSequence):
            self.engine.add_sequence(arrival)
        else:
            arrival()

    def _shut_down(self) -> None:
        """Sends waiting sequences away, and past the deadline the running ones too."""
        for sequence in list(self.engine.waiting):
            if sequence.status is SequenceStatus.WAITING:
                self.engine.finish(sequence, "shutdown")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            for sequence in list(self.engine.running):
                self.engine.finish(sequence, "shutdown")


def _detokenizer(model: LoadedModel, request: Request) -> Detokenizer:
    return Detokenizer(
        model.tokenizer.decoder(),
        request.stop,
        stop_token_ids=request.stop_token_ids,
        min_tokens=request.min_tokens,
    )


def _pooled(handle: RequestHandle) -> Tensor:
    hidden = None
    for output in handle:
        if isinstance(output, PooledOutput):
            hidden = output.hidden
        elif isinstance(output, Finished) and hidden is None:
            raise WorkError(f"the text could not be read: {output.message or output.reason}")
    assert hidden is not None
    return hidden


def _stopping() -> Busy:
    return Busy("the server is stopping", 5.0)


def _wake() -> None:
    """Ends the engine's wait for something to do."""
