"""The verb `data stats` for conversations, preferences and ratings: what the rows are, and how long."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from synthe_core.data.content import kind
from synthe_core.data.conversations.examples import key_of
from synthe_core.data.conversations.messages import plain_text
from synthe_core.data.conversations.prepare import Reader, Row, Tokenized, chats_of, chunks
from synthe_core.data.conversations.rows import Conversation, Preference, Rating, layout_of, parse
from synthe_core.data.conversations.sources import RowSource, renamed
from synthe_core.data.conversations.training_text import Chat
from synthe_core.data.files import Files
from synthe_core.data.rows import RECORDS
from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, SyntheError
from synthe_core.events import Event, Progress, Result

FITS = (512, 1024, 2048)
"""Values of `data.sequence` for which it is counted how many rows fit."""
MAX_REASONS = 12
"""Reasons to skip rows that are listed each; the rest are counted together."""
UNLIMITED = 1 << 62


@dataclass
class RowStats:
    """Counts of the rows of a source.

    prompts: hashes of what stands before the first answer of a conversation, or before the answer of another row.
    lengths: by name ("texts", "prompts", "answers", "turns", "chosen", "rejected") a number a text or a row.
    longest: of each row, its longest text.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    good: int = 0
    with_tools: int = 0
    tool_calls: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)
    longest: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)

    def skip(self, place: str, error: InputError) -> None:
        reason = _reason(place, error)
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = "other reasons"
        self.reasons[reason] += 1
        message = error.message
        self.first.setdefault(reason, message if message.startswith(place) else f"{place}: {message}")

    def add(self, layout: str, read: Row, texts: Sequence[tuple[int, int]]) -> None:
        """A row that can be used; `texts` are the length of each of its texts, and how much of it is trained on."""
        prompt, answers = _sides(read)
        messages = prompt + [message for side in answers for message in side]
        self.kinds[type(read).__name__.lower() + "s"] += 1
        self.layouts[layout] += 1
        self.roles.update(message["role"] for message in messages)
        self.with_tools += bool(read.tools)
        self.tool_calls += sum(len(message.get("tool_calls") or ()) for message in messages)
        self.good += isinstance(read, Rating) and read.good
        self._length("turns", len(prompt) + len(answers[0]))
        for length, trained in texts:
            self._length("texts", length)
            self._length("prompts", length - trained)
            self._length("answers", trained)
        if isinstance(read, Preference):
            self._length("chosen", texts[0][1])
            self._length("rejected", texts[1][1])
        self.longest.append(max(length for length, _ in texts))
        self.digests.append(key_of(json.dumps([prompt, answers, getattr(read, "good", None)], ensure_ascii=False)))
        if isinstance(read, Conversation):
            prompt = prompt[: next(n for n, each in enumerate(prompt) if each["role"] == "assistant")]
        self.prompts.append(key_of(json.dumps(prompt, ensure_ascii=False)))

    def _length(self, name: str, length: int) -> None:
        self.lengths.setdefault(name, []).append(length)

    def values(self, counts_tokens: bool) -> dict[str, Any]:
        used = sum(self.kinds.values())
        texts, trained = sum(self.lengths.get("texts", ())), sum(self.lengths.get("answers", ()))
        values: dict[str, Any] = {
            "rows": self.rows,
            "used": used,
            "skipped": self.rows - used,
            "kinds": dict(self.kinds),
            "layouts": dict(self.layouts),
            "reasons": [
                {"reason": reason, "rows": count, "first": self.first[reason]}
                for reason, count in self.reasons.most_common()
            ],
            "roles": dict(self.roles),
            "rows_with_tools": self.with_tools,
            "tool_calls": self.tool_calls,
            "lengths": {name: _spread(lengths) for name, lengths in self.lengths.items()},
            "trained_share": round(trained / texts, 4) if texts else 0.0,
            "duplicates": used - len(set(self.digests)),
            "repeated_prompts": used - len(set(self.prompts)),
        }
        if counts_tokens:  # a row has a token more, which is only predicted
            values["fit"] = {str(limit): sum(length - 1 <= limit for length in self.longest) for limit in FITS}
        if "chosen" in self.lengths:
            pairs = list(zip(self.lengths["chosen"], self.lengths["rejected"], strict=True))
            values["chosen_longer"] = round(sum(chosen > rejected for chosen, rejected in pairs) / len(pairs), 4)
        if self.kinds["ratings"]:
            values["good"] = self.good
        return values


def statistics(spec: DataSpec, tokenizer: Tokenizer | None = None) -> Iterator[Event]:
    """Ends in a Result with "unit" (tokens, or characters without a tokenizer) and "sources": the counts of each.

    "in_both_splits" of a source is how many of its rows have a prompt of the validation source, where the recipe names
    one. InputError for a source without a usable row.
    """
    validation = [spec.validation] if isinstance(spec.validation, str) else []
    names = [each.source for each in spec.sources] + validation
    counted: list[RowStats] = []
    for name in names:
        counted.append((yield from _read(RowSource.open(name), spec, tokenizer)))
    held_out = set(counted[-1].prompts) if validation else set()
    sources = []
    for number, (name, stats) in enumerate(zip(names, counted, strict=True)):
        side = "validation" if validation and number == len(names) - 1 else "train"
        both = {"in_both_splits": sum(key in held_out for key in stats.prompts)} if validation else {}
        sources.append({"source": name, "split": side, **stats.values(tokenizer is not None), **both})
    unit = "characters" if tokenizer is None else "tokens"
    yield Result({"unit": unit, "tokenizer": tokenizer and tokenizer.name, "sources": sources})


def holds_conversations(name: str, text_field: str) -> bool:
    """Whether a source is a table, or a data set of the hub, whose first row has no text but a known layout."""
    try:
        if not name.startswith("hub:"):
            files = Files.open(name, text_field, None)
            if files is not None and any(kind(path) not in RECORDS for path in files.paths):
                return False
        _, row = next(RowSource.open(name).rows(), ("", None))
    except (SyntheError, OSError):
        return False  # reading it as text says what is wrong
    return isinstance(row, dict) and not isinstance(row.get(text_field), str) and layout_of(row) is not None


def _read(source: RowSource, spec: DataSpec, tokenizer: Tokenizer | None) -> Generator[Event, None, RowStats]:
    stats = RowStats()
    reader = None if tokenizer is None else Reader("conversations", tokenizer, UNLIMITED, spec.trained)
    began = shown = time.monotonic()
    for chunk in chunks(source.rows()):
        _add(stats, chunk, spec, reader)
        if (now := time.monotonic()) - shown > 0.2:
            shown, part = now, source.part(chunk[-1][0])
            total, eta = (round(stats.rows / part), (now - began) * (1 - part) / part) if part else (None, None)
            yield Progress(f"reading {source.name}", stats.rows, total, "rows", eta)
    if not stats.rows:
        raise InputError(f"{source.name} has no rows", "give conversations, one a row")
    if not stats.kinds:
        reason = stats.reasons.most_common(1)[0][0]
        raise InputError(f"no row of {source.name} can be used; the first: {stats.first[reason]}")
    return stats


def _add(stats: RowStats, chunk: Sequence[tuple[str, Any]], spec: DataSpec, reader: Reader | None) -> None:
    parsed: list[tuple[str, str, Row, list[Chat]]] = []
    for place, row in chunk:
        stats.rows += 1
        try:
            row = renamed(row, spec.columns, place)
            read = parse(row, place)
        except InputError as error:
            stats.skip(place, error)
            continue
        parsed.append((place, layout_of(row) or "", read, chats_of(read, spec.trained)))
    if reader is None:
        for _, layout, read, _ in parsed:
            prompt, answers = _sides(read)
            stats.add(layout, read, [_characters(prompt + side, side) for side in answers])
        return
    texts = iter(reader.texts([chat for *_, chats in parsed for chat in chats]))
    for place, layout, read, chats in parsed:
        mine = [next(texts) for _ in chats]
        good = [each.text for each in mine if isinstance(each, Tokenized)]
        if len(good) == len(mine):
            stats.add(layout, read, [(len(text.ids), int(text.trained.sum())) for text in good])
        else:
            stats.skip(place, next(each for each in mine if isinstance(each, InputError)))


def _sides(read: Row) -> tuple[list[Any], list[list[Any]]]:
    """The messages before the last answer, and that answer, or those of a preference."""
    if isinstance(read, Conversation):
        return read.messages, [[]]
    return read.prompt, [read.chosen, read.rejected] if isinstance(read, Preference) else [read.answer]


def _characters(messages: Sequence[Any], answer: Sequence[Any]) -> tuple[int, int]:
    """Characters of all messages, and of the answers among them that are trained on."""
    trained = answer or [message for message in messages if message["role"] == "assistant"]
    return tuple(sum(len(plain_text(each["content"])) for each in some) for some in (messages, trained))  # type: ignore[return-value]


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    """Of whole numbers: the mean, the value that half of them do not exceed, that of 95 in 100, and the longest."""
    median, most = np.percentile(lengths, [50, 95], method="inverted_cdf").tolist()
    return {"mean": round(float(np.mean(lengths)), 1), "median": median, "95th": most, "longest": max(lengths)}


def _reason(place: str, error: InputError) -> str:
    """Why a row is skipped, without its place and its numbers, so that equal reasons are counted together."""
    message = error.message.removeprefix(place)
    message = re.sub(r"^(, (message|part) \d+|, \w+)*: ", "", message)
    return re.sub(r"\d[\d,]*", "N", message)[:160]
