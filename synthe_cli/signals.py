"""Ctrl-C and SIGTERM during long work: the first asks it to save and end, the second ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM)


class Asked(threading.Event):
    """Set once a signal has asked for the end; `number` is which."""

    number: int | None = None


@contextmanager
def stop_on_signal(kept: str = "saving first") -> Iterator[Asked]:
    """Within the block, the event is set by the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    kept: what becomes of the work, told at the first.
    """
    asked = Asked()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.number = number
        asked.set()
        print(f"\nstopping: {kept} (once more to stop at once)", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handle) for number in ASKING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
