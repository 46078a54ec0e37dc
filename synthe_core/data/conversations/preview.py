"""The verb `data preview`: rows of conversations as their model reads them, and what of them is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from synthe_core.data.chat_template import with_template
from synthe_core.data.content import damage, kind
from synthe_core.data.conversations.messages import Message
from synthe_core.data.conversations.rows import Conversation, Preference, parse
from synthe_core.data.conversations.training_text import Trained, training_text, training_tokens
from synthe_core.data.rows import RECORDS, records
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Result

MAX_NOTICES = 20
"""Rows that are skipped with a line each; further ones are counted."""


def preview(
    path: Path, tokenizer: Tokenizer, *, first: int = 1, count: int = 5, trained: Trained = "assistant"
) -> Iterator[Event]:
    """Yields a Result for each of `count` rows of the file from the `first` on, and then one with totals.

    values of a row: "row" (its place), "kind", and "texts": the name, the tokens, how many of them are trained on, and
    "pieces", pairs of text and whether it is trained on. A row that cannot be used is a Notice with the reason.
    InputError for a file that is no table.
    """
    if kind(path) not in RECORDS:
        raise InputError(
            f"{path} is no table of conversations", f"it ends in {', '.join(sorted(RECORDS))}, compressed or not"
        )
    tokenizer = with_template(tokenizer)
    shown = skipped = 0
    with damage(path):
        for place, row in islice(records(path), first - 1, None):
            if shown == count:
                break
            try:
                values = _values(row, place, tokenizer, trained)
            except InputError as error:
                skipped += 1
                if skipped <= MAX_NOTICES:
                    yield Notice(f"skipped: {error.message}" + (f" ({error.hint})" if error.hint else ""), "warning")
                continue
            shown += 1
            yield Result({"row": place, **values})
    if not shown:
        raise InputError(f"{path} has no row that can be trained on from row {first} on", f"{skipped} are skipped")
    yield Result({"shown": shown, "skipped": skipped, "tokenizer": tokenizer.name})


def _values(row: Any, place: str, tokenizer: Tokenizer, trained: Trained) -> dict[str, Any]:
    read = parse(row, place)
    if isinstance(read, Conversation):
        return {"kind": "conversation", "texts": [_text("text", place, tokenizer, read.messages, read.tools, trained)]}
    if isinstance(read, Preference):
        sides = {"chosen": read.chosen, "rejected": read.rejected}
        kind_name = "preference"
    else:
        sides = {"good" if read.good else "bad": read.answer}
        kind_name = "rating"
    texts = [_text(name, place, tokenizer, read.prompt + side, read.tools, "last") for name, side in sides.items()]
    return {"kind": kind_name, "texts": texts}


def _text(
    name: str, place: str, tokenizer: Tokenizer, messages: list[Message], tools: Any, trained: Trained
) -> dict[str, Any]:
    try:
        given = training_text(tokenizer, messages, tools, trained)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", error.hint) from None
    ids, targets = training_tokens(tokenizer, given)
    pieces: list[tuple[str, bool]] = []
    begin = 0
    for place_in_text in range(1, len(ids) + 1):
        if place_in_text == len(ids) or targets[place_in_text] != targets[begin]:
            pieces.append((tokenizer.decode_marked(ids[begin:place_in_text]), targets[begin]))
            begin = place_in_text
    return {"name": name, "tokens": len(ids), "trained": sum(targets), "pieces": pieces}
