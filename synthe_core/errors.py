"""The errors that users see: one line, a hint and an exit code."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

MAX_NAME = 100
"""Characters of a name that an error shows."""
MAX_COMPARED = 300  # characters of a name that is compared with others, which takes the square of the time
MAX_DIVIDED = 10**12  # the largest size whose divisors are looked for


class SyntheError(Exception):
    """An error that is shown without a traceback: `message` says what failed, `hint` what to do.

    lines: the message, or several of equal rank, such as the faults of a recipe. Each is shown as one line, whatever it
    quotes.
    """

    exit_code = 1

    def __init__(self, message: str | Sequence[str], hint: str | None = None) -> None:
        self.lines = [message] if isinstance(message, str) else list(message)
        self.message = "\n".join(self.lines)
        super().__init__(self.message)
        self.hint = hint


class InputError(SyntheError):
    """Invalid input: a bad file, key, name or size. Exit code 2."""

    exit_code = 2


class WorkError(SyntheError):
    """A failure of valid work: a full disk, a diverged run. Exit code 1."""


class OutOfMemory(WorkError):
    """Memory ran out on one of several processes, which may all start again with less to do at once."""


class Interrupted(SyntheError):
    """Stopped by the user after saving. Exit code 130."""

    exit_code = 130


def shortened(text: str, limit: int = MAX_NAME) -> str:
    """A text of somebody's file for an error: its beginning, if it has more than `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to a misspelt `name`, other than `name` itself; None if none is similar."""
    if len(name) > MAX_COMPARED:
        return None
    choices = [choice for choice in choices if choice != name]
    matches = difflib.get_close_matches(name.lower(), {c.lower(): c for c in choices}, n=1, cutoff=0.5)
    return next((c for c in choices if c.lower() == matches[0]), None) if matches else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The InputError for an unknown name, with the nearest name or all known names as the hint."""
    choices = list(choices)
    near = closest(name, choices)
    hint = f"did you mean '{near}'?" if near else f"known: {', '.join(sorted(choices)) or 'none'}"
    return InputError(f"unknown {kind} '{shortened(name)}'", hint)


def nearest_divisor(size: int, count: int, word: str = "heads") -> str:
    """The hint if `count` does not divide `size`: the nearest divisor, where finding it takes no time."""
    if size > MAX_DIVIDED:
        return f"change {word}"
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    best = min([*small, *(size // n for n in small)], key=lambda n: (abs(n - count), n))
    return f"the nearest that works is {word}: {best}"
