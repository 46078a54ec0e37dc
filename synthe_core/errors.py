"""Every error a person may meet: one line, a hint, and the exit code that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SyntheError(Exception):
    """A failure that is explained rather than traced: `message` says what, `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(SyntheError):
    """What was asked cannot be done: a bad file, key, name or size. Exit code 2."""

    exit_code = 2


class WorkError(SyntheError):
    """What was asked was fine, and it failed at work: a full disk, a diverged run. Exit code 1."""


class Interrupted(SyntheError):
    """Stopped by the user after saving. Exit code 130."""

    exit_code = 130


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The nearest of `choices` to a misspelt `name`, itself not among them, or None where nothing is near."""
    choices = [choice for choice in choices if choice != name]
    found = difflib.get_close_matches(name.lower(), {c.lower(): c for c in choices}, n=1, cutoff=0.5)
    return next((c for c in choices if c.lower() == found[0]), None) if found else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """An InputError for a name that is in no table, with the nearest name or all of them as the hint."""
    choices = list(choices)
    near = closest(name, choices)
    hint = f"did you mean '{near}'?" if near else f"known: {', '.join(sorted(choices))}"
    return InputError(f"unknown {kind} '{name}'", hint)


def nearest_divisor(size: int, count: int, word: str = "heads") -> str:
    """The hint where `count` does not divide `size`: the divisor that is nearest to it."""
    best = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: (abs(n - count), n))
    return f"the nearest that works is {word}: {best}"
