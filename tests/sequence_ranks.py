"""Threads of one process as the ranks of a sequence: laws of sequences that are cut need no processes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

from torch import Tensor

from synthe_core.hardware.execution import active_context
from synthe_core.hardware.sequence import SequenceRanks

PATIENCE = 60.0
"""Seconds after which a message counts as lost."""


class ThreadRanks(SequenceRanks):
    """One of the ranks; `mail` is what all of them send each other, by receiver, sender and tag."""

    def __init__(self, rank: int, size: int, mail: dict[Any, SimpleQueue[Tensor]]) -> None:
        super().__init__(rank, size)
        self._mail = mail

    def put(self, message: Tensor, to: int, tag: int) -> None:
        self._mail[to, self.rank, tag].put(message.clone())

    def get(self, message: Tensor, source: int, tag: int) -> None:
        try:
            message.copy_(self._mail[self.rank, source, tag].get(timeout=PATIENCE))
        except Empty:
            raise AssertionError(f"rank {self.rank} waits for rank {source} in vain") from None

    def flush(self) -> None:
        assert all(queue.empty() for (to, *_), queue in list(self._mail.items()) if to == self.rank)


def on_ranks(size: int, work: Callable[[SequenceRanks], Any]) -> list[Any]:
    """What `work(ranks)` returns on each rank, in a context with these ranks; the error of one is raised."""
    mail: dict[Any, SimpleQueue[Tensor]] = defaultdict(SimpleQueue)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []
    context = active_context()

    def run(rank: int) -> None:
        ranks = ThreadRanks(rank, size, mail)
        try:
            with replace(context, sequence=ranks).activate():
                results[rank] = work(ranks)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert all(queue.empty() for queue in mail.values()), "a message was not received"
    return results
