"""Ctrl-C and SIGTERM: work is saved and ends at the first, and at once at the second; a prompt ends at the first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_INTERVAL = 0.05  # seconds, until the handler has run
HANDLED_INTERVAL = 1.0  # seconds, after that


class StopEvent(threading.Event):
    """Set by the first stop signal, whose number it holds."""

    number: int | None = None


@contextmanager
def stop_on_signal(consequence: str = "saving first", silent: bool = False) -> Iterator[StopEvent]:
    """Within the block, the event is set by the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    consequence: what happens to the work; printed at the first signal, unless `silent`.
    """
    stop = StopEvent()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.number = number
        stop.set()
        if not silent:
            print(f"\nstopping: {consequence} (press Ctrl-C again to stop at once)", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interruptible_input() -> Iterator[None]:
    """Within the block, SIGINT or SIGTERM raises KeyboardInterrupt in `input()`, whenever it arrives.

    CPython's `input()` checks for signals and then waits for a key. A signal that arrives between the two has no effect
    until the next key. A thread here reads every signal from the wake-up descriptor and sends it to the main thread
    again until its handler has run: one of them interrupts the wait. readline drops an exception that is raised while
    it completes a word, so the signal is sent again as long as the block has not been left.
    """
    handled, left = threading.Event(), threading.Event()
    active = True

    def handle(number: int, frame: FrameType | None) -> None:
        handled.set()
        if active:
            raise KeyboardInterrupt

    def repeat() -> None:
        while received := os.read(reader, 1):
            while received[0] in previous and not left.wait(HANDLED_INTERVAL if handled.is_set() else REPEAT_INTERVAL):
                signal.pthread_kill(main, received[0])

    main = threading.get_ident()
    previous = {number: handler for number in STOP_SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=repeat, name="repeat-signals", daemon=True)
    thread.start()
    try:
        for number in previous:
            signal.signal(number, handle)
        yield
    finally:
        active = False  # from here on a signal is only noted
        left.set()
        signal.set_wakeup_fd(previous_descriptor)
        os.close(writer)
        thread.join()
        os.close(reader)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if handled.is_set():  # a signal after the last key
        raise KeyboardInterrupt
