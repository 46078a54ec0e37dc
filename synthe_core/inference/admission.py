"""Which requests start: how many sequences and bytes of state there is room for, and when there may be room again."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from synthe_core.errors import InputError
from synthe_core.inference.request import Busy

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel

MEMORY_SHARE = 0.5
"""The part of the memory that is free at the start which states may take."""
MIN_RETRY, MAX_RETRY = 1.0, 120.0  # seconds


def free_memory(models: Sequence[LoadedModel] = ()) -> int:
    """Bytes that this process may still take where the models' states are: of a GPU's memory, else of the machine's as
    the system estimates it."""
    if models and models[0].device.type == "cuda":
        return torch.cuda.mem_get_info(models[0].device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 8 << 30


class AdmissionControl:
    """At most `max_num_seqs` sequences at a time, of at most `max_state_bytes` together; at most `max_waiting` wait.
    Of an owner other than "", at most `max_owned` run and wait (None: any number).

    models: whose states they are; of their device's memory `MEMORY_SHARE` is the default for `max_state_bytes`.
    Paused sequences wait with their state: they count in the bytes only. The counts may be read by any thread.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_waiting: int,
        max_state_bytes: int | None = None,
        max_owned: int | None = None,
        models: Sequence[LoadedModel] = (),
    ) -> None:
        self.max_num_seqs, self.max_waiting, self.max_owned = max_num_seqs, max_waiting, max_owned
        self.max_state_bytes = int(MEMORY_SHARE * free_memory(models)) if max_state_bytes is None else max_state_bytes
        self.num_running = self.num_waiting = self.num_paused = self.state_bytes = 0
        self._lock = threading.Lock()
        self._owned: Counter[str] = Counter()  # sequences of each owner that have not ended
        self._waiting: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=64)  # how long recent sequences took

    def check(self, state_bytes: int, owner: str = "") -> None:
        """Raises InputError for a sequence that never fits, and Busy if too many wait, or too many of this owner."""
        if state_bytes > self.max_state_bytes:
            raise InputError(
                f"a text of this length takes {state_bytes / 1e6:,.0f} MB of state, "
                f"and there are {self.max_state_bytes / 1e6:,.0f}",
                "ask for less, or give the server more memory",
            )
        ahead = self.num_waiting - max(0, self.max_num_seqs - self.num_running)
        if ahead >= self.max_waiting:
            raise Busy(self._queue_is_full(ahead, owner), self.retry_after(ahead))
        own = self._owned[owner] if owner else 0
        if self.max_owned is not None and own >= self.max_owned:
            raise Busy(f"this API key has {own} requests at once, as many as are allowed", self.retry_after(0))

    def _queue_is_full(self, ahead: int, owner: str) -> str:
        """The line says nothing to one owner about others: of the queue only the owner's own requests."""
        if not owner:
            return f"{ahead} requests are waiting already"
        return f"the queue is full ({self.num_waiting_of(owner)} requests of this API key are in it)"

    def retry_after(self, ahead: int) -> float:
        """Seconds until one more than `ahead` requests may have started, from what recent ones took."""
        each = sum(self._seconds) / len(self._seconds) if self._seconds else MIN_RETRY
        return min(MAX_RETRY, max(MIN_RETRY, each * (ahead + 1) / self.max_num_seqs))

    def enqueue(self, owner: str = "") -> None:
        """Counts a request that waits from now on."""
        with self._lock:
            self.num_waiting += 1
            self._waiting[owner] += 1
            self._owned[owner] += 1

    def leave(self, owner: str = "") -> None:
        """Counts a request that has ended."""
        with self._lock:
            self._owned[owner] -= 1
            if not self._owned[owner]:
                del self._owned[owner]

    def dequeue(self, owner: str = "") -> None:
        """Counts a request that waits no more."""
        with self._lock:
            self.num_waiting -= 1
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]

    def num_waiting_of(self, owner: str) -> int:
        """The number of an owner's requests that wait."""
        with self._lock:
            return self._waiting[owner]

    def has_slots(self, count: int = 1) -> bool:
        """Whether `count` more sequences may run."""
        return self.num_running + count <= self.max_num_seqs

    def has_memory(self, state_bytes: int) -> bool:
        """Whether there is room for the state of another sequence. For one alone there always is."""
        return self.state_bytes == 0 or self.state_bytes + state_bytes <= self.max_state_bytes

    def acquire(self, state_bytes: int, owner: str = "") -> None:
        """A waiting sequence starts."""
        self.dequeue(owner)
        self.num_running += 1
        self.state_bytes += state_bytes

    def pause(self) -> None:
        """A running sequence makes room for another; its state stays."""
        self.num_running -= 1
        self.num_paused += 1

    def resume(self) -> None:
        """A paused sequence runs again."""
        self.num_running += 1
        self.num_paused -= 1

    def release(self, state_bytes: int, seconds: float) -> None:
        """A sequence that ran for `seconds` has ended."""
        self.num_running -= 1
        self.state_bytes -= state_bytes
        self._seconds.append(seconds)
