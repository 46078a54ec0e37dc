"""Data sets of labelled pairs: what is known, what is stated, and whether the one supports or contradicts the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError
from synthe_core.swarm.checking.classifier import CONTRADICTED, OPEN, SUPPORTED

KNOWN = ("premise", "evidence", "sentence_A", "known")
STATED = ("hypothesis", "claim", "sentence_B", "stated", "text")
LABELS = {
    "entailment": SUPPORTED, "supports": SUPPORTED, "supported": SUPPORTED,
    "neutral": OPEN, "not enough info": OPEN, "not_enough_info": OPEN,
    "contradiction": CONTRADICTED, "refutes": CONTRADICTED, "refuted": CONTRADICTED,
}  # fmt: skip


class LabelledPair(NamedTuple):
    """known is "" in a data set of claims without evidence."""

    known: str
    stated: str
    label: int


def read_pairs(path: Path) -> list[LabelledPair]:
    """The rows of a JSON-lines file. InputError names the line of one without two sentences and a label."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return [_pair(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def data_sets(folder: Path, half: str) -> dict[str, list[LabelledPair]]:
    """The files NAME.train.jsonl, or NAME.test.jsonl, of a folder by name.

    Files with another label than those of LABELS, such as those of two classes, are left out. InputError if no file
    remains.
    """
    files = sorted(folder.glob(f"*.{half}.jsonl"))
    sets = {path.name.removesuffix(f".{half}.jsonl"): read_pairs(path) for path in files if _is_known(path)}
    if not sets:
        hint = f"a line has premise, hypothesis and label, one of {', '.join(LABELS)}"
        raise InputError(f"no NAME.{half}.jsonl with labelled pairs in {folder}", hint)
    return sets


def _is_known(path: Path) -> bool:
    """Whether every row that has a label has one of LABELS."""
    with path.open(encoding="utf-8", errors="replace") as file:
        labels = (json.loads(line).get("label") for line in file if line.strip().startswith("{"))
        try:
            return all(str(label).lower() in LABELS for label in labels if label is not None)
        except (ValueError, AttributeError):
            return True  # `read_pairs` names the line


def _pair(line: str, place: str) -> LabelledPair:
    try:
        row = json.loads(line)
        known = next((str(row[name]) for name in KNOWN if name in row), "")
        stated = next(str(row[name]) for name in STATED if name in row)
        return LabelledPair(known, stated, LABELS[str(row["label"]).lower()])
    except (ValueError, KeyError, TypeError, StopIteration):
        raise InputError(f"{place}: no pair with a label", "a line has premise, hypothesis and label") from None
