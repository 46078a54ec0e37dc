"""Pairs as training data: as the specialist reads the prompt when it answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.swarm.feedback.pairs import Pair
from synthe_core.swarm.spec import SpecialistSpec


def preference_row(pair: Pair, specialist: SpecialistSpec) -> dict[str, Any]:
    """The pair as a row of `dpo` and `orpo`. The specialist's system prompt stands before the request; its documents
    and what is known of a user do not."""
    return {"prompt": prompt_of(pair.prompt, specialist), "chosen": pair.chosen, "rejected": pair.rejected}


def answer_row(pair: Pair, specialist: SpecialistSpec) -> dict[str, Any]:
    """The pair as a row of `sft`: the better answer alone."""
    answer = {"role": "assistant", "content": pair.chosen}
    return {"messages": [*prompt_of(pair.prompt, specialist), answer]}


def prompt_of(request: str, specialist: SpecialistSpec) -> list[dict[str, str]]:
    """The messages before an answer."""
    system = specialist.prompt.strip()
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": request}]


def read_pairs(path: Path, specialist: SpecialistSpec) -> list[dict[str, Any]]:
    """The rows of a file of pairs that somebody has checked. InputError names a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"promotion.pairs: {path} cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            texts = [row[name] for name in ("prompt", "chosen", "rejected")]
        except (ValueError, TypeError, KeyError):
            texts = [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"{path}:{number} is no pair", '{"prompt": "...", "chosen": "...", "rejected": "..."}')
        prompt, chosen, rejected = texts
        rows.append({"prompt": prompt_of(prompt, specialist), "chosen": chosen, "rejected": rejected})
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines; returns the path."""
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path
