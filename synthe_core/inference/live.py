"""A request that is being answered: how far it has come, and what its caller is told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from synthe_core.inference.constraint import Constraint
from synthe_core.inference.generation import Row
from synthe_core.inference.request import Event, Finished, Request, Told


class Ticket:
    """A request under way. Events come to `deliver`, called from the engine's thread, or else by iterating."""

    def __init__(self, request: Request, deliver: Callable[[Event], None] | None = None) -> None:
        self.request = request
        self.cancelled = False
        self.wake: Callable[[], None] = lambda: None
        self._done = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._deliver = deliver or self._events.put

    def cancel(self) -> None:
        """Gives the request up; its row is freed before the next step, and a last event comes all the same."""
        self.cancelled = True
        self.wake()

    def deliver(self, event: Event) -> None:
        """Tells the caller; nothing comes after a Finished, and a caller that fails is told no more."""
        if self._done.is_set():
            return
        if isinstance(event, Finished):
            self._done.set()
        try:
            self._deliver(event)
        except Exception:  # the caller has gone, its loop is closed: no concern of the rows beside it
            self._done.set()
            self.cancelled = True

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Finished):
                return


@dataclass(eq=False)
class Live:
    """A request that has been let in.

    tokens: what is to be read, with the token that a session left `pending` in front. base: how many tokens the session
    had read before them. at: how many of `tokens` are read. state: of one row, after those; None at the beginning, and
    once the row has a place in a batch. cached: tokens, the session's included, that need not be read.
    pending: the newest token, written but not read.
    """

    ticket: Ticket
    tokens: list[int]
    row: Row
    base: int = 0
    at: int = 0
    state: Any = None
    cached: int = 0
    written: list[int] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    before: Tensor | None = None  # logits [V] of the next token to be told
    generator: torch.Generator | None = None
    constraint: Constraint | None = None
    seen: Tensor | None = None  # bool [V], what the repetition penalty applies to
    often: Tensor | None = None  # float32 [V], how often each token was written
    follows: bool = False  # waits for another that reads the same prompt
    bytes: int = 0
    began: float = 0.0

    @property
    def request(self) -> Request:
        return self.ticket.request

    @property
    def position(self) -> int:
        """How many tokens the state has read, the session's past included, while the prompt is being read."""
        return self.base + self.at

    @property
    def end(self) -> int:
        """How many of `tokens` are to be read. Who writes nothing and keeps a session leaves the last one pending."""
        return len(self.tokens) - (self.request.count == 0 and self.request.session is not None)

    @property
    def length(self) -> int:
        """How many tokens the state has read, as long as it writes."""
        return self.base + len(self.tokens) + max(0, len(self.written) - 1)

    @property
    def pending(self) -> int:
        return self.written[-1] if self.written else self.tokens[-1]
