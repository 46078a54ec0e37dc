"""The data and the metric of passkey.yaml. Source of the task: Mohtashami & Jaggi 2023, "Landmark attention"."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets

from synthe_core.data.tokenizers import Tokenizer, load_tokenizer

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
OPENING = "A pass key is hidden in this text. Find it and remember it.\n"
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "\nWhat is the pass key? The pass key is"
QUESTIONS = 50  # of each length


def documents(
    max_seq_lengths: tuple[int, ...] = (1024,), tokenizer: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """Texts of at most these lengths, in tokens of the tokenizer in that folder; without one, a token is four bytes."""
    loaded = None if tokenizer is None else load_tokenizer(Path(tokenizer))
    rows = []
    for length in max_seq_lengths:
        draw = random.Random(length)
        for number in range(QUESTIONS):
            key = str(draw.randrange(10_000, 100_000))
            rows.append({"text": text(key, length, number / (QUESTIONS - 1), loaded), "key": key, "length": length})
    return {"test": datasets.Dataset.from_list(rows)}


def text(key: str, length: int, depth: float, tokenizer: Tokenizer | None) -> str:
    """A text of at most `length` tokens with the key at `depth`, from 0 (the beginning) to 1 (the end)."""

    def count(piece: str) -> float:
        return len(piece.encode()) / 4 if tokenizer is None else len(tokenizer.encode(piece))

    needle = NEEDLE.format(key=key)
    room = length - count(OPENING + needle + QUESTION) - 4
    times = max(0, int(room / (count(FILLER * 16) / 16)))
    before = round(times * depth)
    return OPENING + FILLER * before + needle + FILLER * (times - before) + QUESTION


def judge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the key is in the answer, overall and by the length of the text."""
    right = float(doc["key"] in results[0])
    return {"acc": right, str(doc["length"]): right}
