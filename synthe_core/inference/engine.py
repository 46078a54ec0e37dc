"""The engine: one thread that owns the models, and takes every request a little further in turn."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.inference import steady
from synthe_core.inference.admission import SHARE, Admission, free_memory
from synthe_core.inference.catalogue import Catalogue, Found
from synthe_core.inference.checks import check, check_tokens, in_a_line
from synthe_core.inference.constraint import Constraint
from synthe_core.inference.figures import Figures
from synthe_core.inference.generation import Row
from synthe_core.inference.lane import Lane
from synthe_core.inference.live import Live, Ticket
from synthe_core.inference.request import Busy, Event, Finished, Reason, Request
from synthe_core.inference.served import Served
from synthe_core.inference.session_store import SessionStore
from synthe_core.inference.snapshots import Snapshots
from synthe_core.model.session import Session

__all__ = ["Engine", "Ticket"]

T = TypeVar("T")
BUDGET = 512
"""Tokens of prompts that are read between two steps, padding included: what a long prompt makes the others wait for."""
CACHE = 1 << 30  # bytes of snapshots
LONGEST = 1 << 20  # tokens of one text whose state may grow
WAITING = 256


class Engine:
    """Serves `models`; use it as a context manager, or `close` it.

    max_batch: texts that are answered at once; max_waiting: more that wait; state_bytes: what the states of all of them
    may take, half of the free memory where it is not given. cache_bytes: of snapshots in memory, and in files of
    `cache_dir` eight times as many. sessions: the folder of saved conversations; in memory only without it.
    """

    def __init__(
        self,
        models: Sequence[Served],
        *,
        max_batch: int = 64,
        max_waiting: int = WAITING,
        state_bytes: int | None = None,
        cache_bytes: int = CACHE,
        cache_dir: Path | None = None,
        sessions: Path | None = None,
    ) -> None:
        steady.ask()
        self.catalogue = Catalogue(models)
        self.models: Mapping[str, Served] = self.catalogue.models
        self.max_batch = max_batch
        self.sessions = SessionStore(sessions, cache_bytes)
        self.figures = Figures()
        self.snapshots = Snapshots(cache_bytes, cache_dir)
        memory = state_bytes if state_bytes is not None else int(SHARE * free_memory())
        self.admission = Admission(max_batch, max_waiting, memory)
        self._arriving: queue.SimpleQueue[Ticket | Callable[[], None] | None] = queue.SimpleQueue()
        self._count_lock = threading.Lock()
        self._unstarted, self._waiting = 0, deque[Ticket]()  # submitted and not let in; of those, taken in
        self._live: dict[Live, Lane] = {}
        self._saving: set[Live] = set()
        self._lanes: dict[str, Lane] = {}
        self._closing: float | None = None
        self._saver = ThreadPoolExecutor(1, "sessions")
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, name: str) -> tuple[Served, str | None]:
        """The model of that name, and the name of its adapter; raises NoSuch."""
        found = self.catalogue.find(name)
        return found.served, found.name

    def submit(self, request: Request, deliver: Callable[[Event], None] | None = None) -> Ticket:
        """Begins a request. Raises NoSuch, InputError for what cannot be asked, Busy where there is no room."""
        served, _, _, prints = self.catalogue.find(request.model)
        check(request, served)
        if self._closing is not None:
            raise Busy("the server is stopping", 5.0)
        length = len(request.prompt) + request.count
        ahead = self._unstarted - max(0, self.max_batch - len(self._live))
        self.admission.check(served.bytes_at(min(length, LONGEST)), ahead)
        if request.schema is not None:
            Constraint(served.tokenizer, served.vocab, request.schema)  # says what is wrong with it, here
        if request.session is not None:
            self.sessions.claim(request.session, prints.weights)
        ticket = Ticket(request, deliver)
        ticket.wake = lambda: self._arriving.put(_nothing)
        with self._count_lock:
            self._unstarted += 1
        self.figures.requests += 1
        self._arriving.put(ticket)
        return ticket

    def call(self, work: Callable[[], T]) -> Future[T]:
        """`work` on the engine's thread, between two steps: for whatever else needs the models."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                for served in self.models.values():
                    with served.ready(None):
                        pass  # without an adapter, as `work` expects it
                future.set_result(work())
            except BaseException as error:  # it belongs to whoever waits
                future.set_exception(error)

        if not self._thread.is_alive():
            future.set_exception(Busy("the server is stopping", 5.0))
        self._arriving.put(run)
        return future

    def embed(self, model: str, texts: Sequence[Sequence[int]]) -> Tensor:
        """float32 [N, D]: the mean over each text's tokens of the last block's output, after the norm."""
        served, _, adapter, _ = self.catalogue.find(model)
        for text in texts:
            check_tokens(text, served)

        def read(text: Sequence[int]) -> Tensor:
            tokens = torch.tensor([list(text)], device=served.model.embedding.weight.device)
            with served.ready(adapter):
                return served.read(tokens, None).hidden.float().mean(1)

        return torch.cat([self.call(lambda text=text: read(text)).result() for text in texts])  # type: ignore[misc]

    def with_model(self, model: str, tokens: Sequence[int], work: Callable[[Served], T]) -> Future[T]:
        """`work` on the engine's thread with that model and its adapter, which are to read `tokens`."""
        served, _, adapter, _ = self.catalogue.find(model)
        check_tokens(tokens, served)

        def run() -> T:
            with served.ready(adapter):
                return work(served)

        return self.call(run)

    def load_adapter(self, model: str, name: str, path: Path) -> None:
        """Serves the adapter at `path` as `model:name` from now on."""
        served, adapter = self.find(model)
        if adapter is not None or ":" in name or not name:
            raise InputError("an adapter has a name of its own, on a model without one")

        def load() -> None:
            served.load_adapter(name, path)
            self.catalogue.identify(served, name)

        self.call(load).result()

    def unload_adapter(self, model: str, name: str) -> None:
        """Serves it no more; what is being written with it is written to its end."""
        served, _ = self.find(f"{model}:{name}")

        def unload() -> None:
            self.snapshots.forget(self.catalogue.remove(served, name).prints.weights)
            self._detach_unused(served)

        self.call(unload).result()

    def status(self) -> dict[str, Any]:
        """What is going on, for people and for Prometheus."""
        return {
            "live": len(self._live),
            "waiting": self._unstarted,
            "max_batch": self.max_batch,
            "max_waiting": self.admission.waiting,
            **self.figures.told(),
            "exact": steady.holds(),
            "state_bytes_per_sequence": {name: served.bytes_at(LONGEST) for name, served in self.models.items()},
            "state_bytes": self.admission.taken,
            "state_bytes_limit": self.admission.memory,
            "sessions": len(self.sessions.list()),
            "cache": self.snapshots.told(),
        }

    def close(self, deadline: float = 10.0) -> None:
        """Lets what is being written end within `deadline` seconds, cuts off the rest, saves sessions, and stops.

        Called again it may shorten the time.
        """
        end = time.monotonic() + deadline
        if self._closing is None or end < self._closing:
            self._closing = end
            self._arriving.put(None)
        self._thread.join()
        self._saver.shutdown(wait=True)

    # ---- the engine's thread

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            self._take_in()
            if self._closing is not None and self._close_down():
                break
            self._admit()
            for row in [row for row in self._live if row.ticket.cancelled]:
                self._cut(row, "cancelled")
            for lane in list(self._lanes.values()):
                self._turn(lane)
        self._drain()
        self.snapshots.close()

    def _take_in(self) -> None:
        """What has arrived; waits for something where there is nothing to do."""
        idle = not self._lanes and not self._waiting and self._closing is None
        while True:
            try:
                timeout = 0.05 if self._closing is not None and not self._lanes else None
                arrived = self._arriving.get(block=idle or timeout is not None, timeout=timeout)
            except queue.Empty:
                return
            idle = False
            if isinstance(arrived, Ticket):
                self._waiting.append(arrived)
            elif arrived is not None:
                arrived()
            elif self._closing is None:
                return
            if self._arriving.empty():
                return

    def _admit(self) -> None:
        """Lets in those who wait, in their order, as long as there is room."""
        for ticket in [ticket for ticket in self._waiting if ticket.cancelled]:
            self._waiting.remove(ticket)
            self._refuse(ticket, "cancelled")
        while self._waiting:
            ticket = self._waiting[0]
            try:
                found = self.catalogue.find(ticket.request.model)
                row = self._row(ticket, found)
                if not self.admission.fits(row.bytes, len(self._live)):
                    return
                self._waiting.popleft()
                lane = self._lane(found)
                with self._count_lock:
                    self._unstarted -= 1
                self.admission.enter(row.bytes)
                self._live[row] = lane
            except Exception as error:
                self._waiting.popleft()
                self._refuse(ticket, "refused" if isinstance(error, InputError) else "failed", in_a_line(error))
                continue
            try:
                with lane.served.ready(lane.adapter):
                    lane.begin(row)
            except Exception as error:
                self._fail([row], error)

    def _row(self, ticket: Ticket, found: Found) -> Live:
        request, served, session = ticket.request, found.served, None
        if request.session is not None:
            with served.ready(found.adapter):
                session = self.sessions.open(request.session, served.model)
        tokens = list(request.prompt)
        row = Live(ticket, tokens, Row(served.tokenizer.decoder(), request.stop), began=time.monotonic())
        if session is not None:
            row.state, row.base = session.state, int(session.state.position[0])
            tokens.insert(0, int(session.pending[0]))
        if not tokens:
            raise InputError("nothing to read: the prompt is empty", "give at least one token, or a saved session")
        if served.limit is not None and row.base + len(tokens) + request.count > served.limit:
            raise InputError(f"with what the session has read that is more than the model's {served.limit} tokens")
        if request.schema is not None:
            row.constraint = Constraint(served.tokenizer, served.vocab, request.schema)
        row.bytes = served.bytes_at(min(LONGEST, row.base + len(tokens) + request.count))
        return row

    def _lane(self, found: Found) -> Lane:
        key, told = f"{found.served.name} {found.prints.weights}", (self.figures, _emit, self._finish)
        if key not in self._lanes:
            self._lanes[key] = Lane(found.served, found.adapter, found.prints, self.snapshots, *told)
        return self._lanes[key]

    def _turn(self, lane: Lane) -> None:
        """One lane's share of a step: a chunk of prompts, and a token of every row that writes."""
        for work in (lambda: lane.read(BUDGET), lane.write):
            rows = lane.rows
            try:
                with lane.served.ready(lane.adapter):
                    work()
            except Exception as error:
                gone = lane.abandon()
                self._fail([row for row in rows if row in self._live or row in gone], error)
        if not lane.rows:
            self._lanes = {key: other for key, other in self._lanes.items() if other is not lane}
            self._detach_unused(lane.served)

    def _detach_unused(self, served: Served) -> None:
        """The adapters of a model that were unloaded, as soon as no row uses them."""
        lanes = (lane for lane in self._lanes.values() if lane.served is served)
        served.detach_unused([lane.adapter for lane in lanes if lane.adapter is not None])

    def _finish(self, row: Live, reason: Reason, state: Any) -> None:
        """A row's end: its session is saved first, by another thread, and then its caller is told."""
        lane = self._live.pop(row, None)
        if lane is None:
            return
        self.admission.leave(row.bytes, time.monotonic() - row.began)
        self.figures.cached_tokens += row.cached
        session = row.request.session
        if session is None or state is None:
            self._end(row, reason)
            return
        kept = Session(state, torch.tensor([row.pending]))
        self._saving.add(row)

        def save() -> None:
            message = ""
            try:
                with torch.inference_mode():
                    self.sessions.save(session, row.request.model, lane.prints.weights, lane.prints.shape, kept)
            except Exception as error:
                message = in_a_line(error)
            self._arriving.put(lambda: self._end(row, "failed" if message else reason, message))

        self._saver.submit(save)

    def _end(self, row: Live, reason: Reason, message: str = "") -> None:
        self._saving.discard(row)
        if row.request.session is not None:
            self.sessions.release(row.request.session)
        self.figures.failed += reason == "failed"
        prompt = row.base + len(row.tokens)
        row.ticket.deliver(Finished(reason, row.row.finish(), prompt, row.cached, len(row.written), message))

    def _cut(self, row: Live, reason: Reason) -> None:
        """Ends a row before its end. Its session keeps what was written; where nothing was, it stays as it was."""
        lane = self._live[row]
        try:
            state = lane.drop(row)
        except Exception as error:
            self._fail([row, *lane.abandon()], error)
            return
        self._finish(row, reason, state if row.written else None)

    def _fail(self, rows: Sequence[Live], error: Exception) -> None:
        message = in_a_line(error)
        for row in rows:
            if self._live.pop(row, None) is not None:
                self.admission.leave(row.bytes, time.monotonic() - row.began)
                self._end(row, "failed", message)

    def _refuse(self, ticket: Ticket, reason: Reason, message: str = "") -> None:
        """A request that was never let in."""
        with self._count_lock:
            self._unstarted -= 1
        if ticket.request.session is not None:
            self.sessions.release(ticket.request.session)
        self.figures.failed += reason == "failed"
        ticket.deliver(Finished(reason, "", len(ticket.request.prompt), 0, 0, message))

    def _close_down(self) -> bool:
        """Whether everything is at its end; those who wait are sent away, and past the deadline those who write."""
        assert self._closing is not None
        while self._waiting:
            self._refuse(self._waiting.popleft(), "shutdown")
        if time.monotonic() >= self._closing:
            for row in list(self._live):
                self._cut(row, "shutdown")
        return not self._live and not self._saving

    def _drain(self) -> None:
        """Answers what arrived too late."""
        while not self._arriving.empty():
            arrived = self._arriving.get()
            if isinstance(arrived, Ticket):
                self._refuse(arrived, "shutdown")
            elif arrived is not None:
                arrived()


def _emit(row: Live, event: Event) -> None:
    row.ticket.deliver(event)


def _nothing() -> None:
    """Wakes the engine."""
