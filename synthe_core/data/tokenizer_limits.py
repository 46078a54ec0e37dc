"""Bounds of a tokenizer.json from elsewhere, held against its content before anything is made of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.storage.json_reader import check_values

MAX_BYTES = 256 << 20
MAX_VALUES = 16_000_000  # commas and brackets of the JSON: what parsing it may take of memory
MAX_ID = 1 << 22
MAX_GROWTH = 64.0  # how much longer the normalizers may make a text, with slack: published ones less than double it
MAX_AFFIX = 64  # characters that are put before or after every word
MAX_WORD = 10_000  # characters of a word that WordPiece splits, in quadratic time


def read_limited(path: Path) -> bytes:
    """The content of a file. InputError for one that is too large for a tokenizer."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes, and may have {MAX_BYTES:,}", "this file is no tokenizer")
    return path.read_bytes()


def parse_limited(content: bytes) -> tuple[str, Any]:
    """The text of a tokenizer.json and its values. ValueError if it is no JSON, or past the bounds."""
    check_values(content, MAX_VALUES)
    text = content.decode("utf-8")
    values = json.loads(text)
    check_limits(values)
    return text, values


def check_limits(values: Any) -> None:
    """ValueError for ids that would make tables of gigabytes, and for normalizers that blow up every text."""
    if not isinstance(values, dict):
        return
    model = values.get("model")
    model = model if isinstance(model, dict) else {}
    vocab = model.get("vocab")
    ids = [value for value in vocab.values() if isinstance(value, int)] if isinstance(vocab, dict) else []
    added = values.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            ids.append(token["id"])
    if ids and max(ids) >= MAX_ID:
        raise ValueError(f"a token has the id {max(ids)}, and ids end at {MAX_ID - 1}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model.get(key), str) and len(model[key]) > MAX_AFFIX:
            raise ValueError(f"its {key} has {len(model[key])} characters, and may have {MAX_AFFIX}")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MAX_WORD:
        raise ValueError(f"its max_input_chars_per_word is {longest}, and may be {MAX_WORD}")
    if (growth := _growth(values.get("normalizer"))) > MAX_GROWTH:
        raise ValueError(f"its normalizers make a text {growth:.3g} times as long")


def _growth(normalizer: Any) -> float:
    """How many characters a normalizer may make of one, at most."""
    if not isinstance(normalizer, dict):
        return 1.0
    if normalizer.get("type") == "Sequence":
        growth = 1.0
        for each in normalizer.get("normalizers") or []:
            growth *= _growth(each)
        return growth
    if normalizer.get("type") == "Prepend":
        return 1.0 + len(str(normalizer.get("prepend", ""))) / MAX_AFFIX
    if normalizer.get("type") != "Replace":
        return 1.0
    content, pattern = len(str(normalizer.get("content", ""))), normalizer.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    if isinstance(text := pattern.get("String"), str) and text:
        return max(1.0, content / len(text))
    return max(1.0, float(content)) + content * _matches_nothing(pattern.get("Regex"))


def _matches_nothing(regex: Any) -> bool:
    """Whether a pattern may match between any two characters; True if that is unknown."""
    try:
        return re.fullmatch(str(regex)[:MAX_WORD], "") is not None
    except (re.error, RecursionError, OverflowError):
        return True
