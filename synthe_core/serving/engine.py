"""The engine: one thread that owns the models, and takes every request a little further in turn."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from synthe_core.adapters.low_rank import wearing
from synthe_core.errors import SyntheError, closest
from synthe_core.generation import Row
from synthe_core.model.generate import Generation
from synthe_core.serving.request import Chance, Event, Finished, NoSuch, Request, Started, Written
from synthe_core.serving.served import Served

T = TypeVar("T")


class Ticket:
    """A request under way. Events come to `deliver`, called from the engine's thread, or else by iterating."""

    def __init__(self, request: Request, deliver: Callable[[Event], None] | None) -> None:
        self.request = request
        self.cancelled = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.deliver = deliver or self._events.put

    def cancel(self) -> None:
        """Gives the request up; its row is freed before the next step, and a last event comes all the same."""
        self.cancelled = True

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Finished):
                return


@dataclass
class Live:
    """A request that is being written."""

    ticket: Ticket
    served: Served
    generation: Generation
    row: Row
    written: int = 0


class Engine:
    """Serves `models`; use it as a context manager, or `close` it."""

    def __init__(self, models: Sequence[Served], *, max_batch: int = 64) -> None:
        self.models: Mapping[str, Served] = {served.name: served for served in models}
        self.max_batch = max_batch
        self._arriving: queue.SimpleQueue[Ticket | Callable[[], None] | None] = queue.SimpleQueue()
        self._live: list[Live] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, name: str) -> tuple[Served, str | None]:
        """The model of that name, and the adapter that it is to wear; raises NoSuch."""
        base, _, adapter = name.partition(":")
        if base not in self.models or (adapter and adapter not in self.models[base].adapters):
            names = [*self.models, *(f"{m}:{a}" for m, served in self.models.items() for a in served.adapters)]
            near = closest(name, names)
            raise NoSuch(
                f"no such model: {name}", f"did you mean '{near}'?" if near else f"served here: {', '.join(names)}"
            )
        return self.models[base], adapter or None

    def submit(self, request: Request, deliver: Callable[[Event], None] | None = None) -> Ticket:
        """Begins a request. Raises NoSuch, InputError for what cannot be asked, Busy where there is no room."""
        self.find(request.model)
        ticket = Ticket(request, deliver)
        self._arriving.put(ticket)
        return ticket

    def call(self, work: Callable[[], T]) -> Future[T]:
        """`work` on the engine's thread, between two steps: for whatever else needs the models."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # it belongs to whoever waits
                future.set_exception(error)

        self._arriving.put(run)
        return future

    def embed(self, model: str, texts: Sequence[Sequence[int]]) -> Tensor:
        """float32 [N, D]: the mean over each text's tokens of the last block's output, after the norm."""
        served, adapter = self.find(model)

        @torch.inference_mode()
        def read() -> Tensor:
            with wearing(served.model, served.adapters[adapter] if adapter else None):
                rows = [served.model.hidden(torch.tensor([list(text)]))[0].float().mean(1) for text in texts]
            return torch.cat(rows)

        return self.call(read).result()

    def status(self) -> dict[str, Any]:
        """What is going on, for people and for Prometheus."""
        return {"live": len(self._live), "waiting": self._arriving.qsize(), "max_batch": self.max_batch}

    def close(self, deadline: float = 10.0) -> None:
        """Lets what is being written end within `deadline` seconds, cuts off the rest, and stops."""
        self._closing = True
        self._arriving.put(None)
        self._thread.join(deadline)

    def _work(self) -> None:
        while True:
            try:
                arrived = self._arriving.get(block=not self._live)
            except queue.Empty:
                self._step()
                continue
            if arrived is None:
                for live in self._live:
                    self._finish(live, "shutdown")
                return
            if isinstance(arrived, Ticket):
                try:
                    self._begin(arrived)
                except SyntheError as error:
                    arrived.deliver(Finished("failed", "", len(arrived.request.prompt), 0, 0, error.message))
            else:
                arrived()

    def _begin(self, ticket: Ticket) -> None:
        request = ticket.request
        served, adapter = self.find(request.model)
        with wearing(served.model, served.adapters[adapter] if adapter else None):
            generation = Generation(
                served.model,
                [request.prompt],
                sampling=request.sampling,
                seed=request.seed,
                end=None if request.to_the_end else served.tokenizer.end,
            )
        ticket.deliver(Started(len(request.prompt), 0))
        self._live.append(Live(ticket, served, generation, Row(served.tokenizer.decoder(), request.stop)))

    def _step(self) -> None:
        for live in list(self._live):
            if live.ticket.cancelled:
                self._finish(live, "cancelled")
                continue
            if live.written >= live.ticket.request.count:
                self._finish(live, "length")
                continue
            _, adapter = self.find(live.ticket.request.model)
            with wearing(live.served.model, live.served.adapters[adapter] if adapter else None):
                token = int(live.generation.step()[0])
            chances = live.generation._logits[0].float().log_softmax(-1)
            live.written += 1
            text = live.row.push(token)
            top = chances.topk(live.ticket.request.logprobs or 0)
            live.ticket.deliver(
                Written(
                    token,
                    text,
                    Chance(token, float(chances[token])),
                    tuple(Chance(int(i), float(p)) for p, i in zip(top.values, top.indices, strict=True)),
                    float(chances.max().exp()),
                )
            )
            if live.row.ended or not bool(live.generation.live[0]):
                self._finish(live, "stop")

    def _finish(self, live: Live, reason: Any) -> None:
        self._live.remove(live)
        prompt = len(live.ticket.request.prompt)
        live.ticket.deliver(Finished(reason, live.row.finish(), prompt, 0, live.written))
