"""From rows of conversations, preferences and ratings to examples, once; then from the cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from synthe_core.data.chat_template import PLAIN, with_template
from synthe_core.data.conversations.examples import FORMAT, Example, Examples, Text, key_of, write_examples
from synthe_core.data.conversations.messages import Message
from synthe_core.data.conversations.rows import Conversation, Preference, Rating, parse
from synthe_core.data.conversations.sources import RowSource, renamed
from synthe_core.data.conversations.training_text import Trained, training_text, training_tokens
from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress
from synthe_core.hardware.probe import cache_dir

Reads = Literal["conversations", "preferences", "ratings"]
MAX_NOTICES = 3
"""Rows that are skipped with a line each; all are counted."""
TEXTS = {"conversations": 1, "preferences": 2, "ratings": 1}


class TooLong(InputError):
    """An example has more tokens than a row may have."""


@dataclass
class Reader:
    """Makes examples of rows.

    sequence: the most tokens that a text may have besides its last one, which is only predicted.
    shortened: conversations that lost turns at their end to fit.
    """

    reads: Reads
    tokenizer: Tokenizer
    sequence: int
    trained: Trained = "assistant"
    shortened: int = 0
    _begin: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None:  # as a model without one is served
            begin = self.tokenizer.begin
            self._begin = () if begin is None else (begin,)
            self.tokenizer = with_template(self.tokenizer)

    def examples(self, row: Any, place: str) -> Iterator[Example]:
        """The examples of a row: two ratings of a preference, otherwise one. InputError says why there are none."""
        read = parse(row, place)
        if isinstance(read, Conversation) and self.reads == "conversations":
            yield self._conversation(read, place)
        elif isinstance(read, Preference) and self.reads != "conversations":
            sides = [self._answer(read, side, place) for side in (read.chosen, read.rejected)]
            key = self._key(read)
            if self.reads == "preferences":
                yield Example(sides, key=key)
            else:
                yield from (Example([side], good, key) for side, good in zip(sides, (True, False), strict=True))
        elif isinstance(read, Rating) and self.reads == "ratings":
            yield Example([self._answer(read, read.answer, place)], read.good, self._key(read))
        else:
            raise InputError(
                f"{place}: the row is a {type(read).__name__.lower()}, and the objective reads {self.reads}",
                "choose another objective, such as --objective " + _OBJECTIVES[type(read)],
            )

    def _conversation(self, read: Conversation, place: str) -> Example:
        messages = list(read.messages)
        while True:
            text, prompt = self._text(messages, read.tools, place, self.trained)
            if len(text.ids) - 1 <= self.sequence:
                break
            answers = [at for at, each in enumerate(messages[:-1]) if each["role"] == "assistant"]
            if not answers or self.trained == "last":
                raise self._too_long(text, place)
            messages = messages[: answers[-1] + 1]  # whole turns only
        self.shortened += len(messages) < len(read.messages)
        return Example([text], key=key_of(prompt))

    def _answer(self, read: Preference | Rating, answer: list[Message], place: str) -> Text:
        text, _ = self._text(read.prompt + answer, read.tools, place, "last")
        if len(text.ids) - 1 > self.sequence:
            raise self._too_long(text, place)
        return text

    def _key(self, read: Preference | Rating) -> int:
        return key_of(json.dumps(read.prompt, ensure_ascii=False))

    def _text(self, messages: list[Message], tools: Any, place: str, trained: Trained) -> tuple[Text, str]:
        """The tokens of messages, and the text before the first answer."""
        try:
            given = training_text(self.tokenizer, messages, tools, trained)
        except InputError as error:
            raise InputError(f"{place}: {error.message}", error.hint) from None
        tokens = training_tokens(self.tokenizer, given)
        tokens = tokens._replace(ids=[*self._begin, *tokens.ids], trained=[False] * len(self._begin) + tokens.trained)
        if not any(tokens.trained[1:]):
            raise InputError(f"{place}: the chat template leaves no token to train on")
        return Text.of(tokens), given.text[: given.spans[0][0]] or given.text

    def _too_long(self, text: Text, place: str) -> TooLong:
        return TooLong(
            f"{place}: {len(text.ids) - 1:,} tokens are more than data.sequence, {self.sequence:,}",
            "raise data.sequence",
        )


_OBJECTIVES = {Conversation: "sft", Preference: "dpo", Rating: "kto"}


def open_examples(
    spec: DataSpec, source: RowSource, reads: Reads, tokenizer: Tokenizer
) -> Generator[Event, None, Examples]:
    """The examples of a source; made now if they are not in the cache.

    Rows that cannot be used are skipped, and counted by a Notice that names the first of them. InputError if no row can
    be used.
    """
    template = tokenizer.chat_template or PLAIN
    options = [reads, spec.sequence, spec.trained, dict(spec.columns)]
    identity = json.dumps([FORMAT, source.identity(), tokenizer.digest, tokenizer.begin, template, options])
    path = cache_dir() / "examples" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        try:
            examples = Examples(path)
        except (InputError, KeyError, ValueError):  # damaged: it is made again
            path.unlink()
        else:
            yield from map(lambda note: Notice(note, "warning"), examples.facts["notes"])
            return examples
    reader = Reader(reads, tokenizer, spec.sequence, spec.trained)
    made, skipped = yield from _read(source, spec, reader)
    notes = _notes(source, reader, skipped, len(made))
    yield from map(lambda note: Notice(note, "warning"), notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_examples(path, made, TEXTS[reads], {"skipped": len(skipped), "shortened": reader.shortened, "notes": notes})
    return Examples(path)


def _read(
    source: RowSource, spec: DataSpec, reader: Reader
) -> Generator[Event, None, tuple[list[Example], list[InputError]]]:
    made: list[Example] = []
    skipped: list[InputError] = []
    shown = time.monotonic()
    for number, (place, row) in enumerate(source.rows(), start=1):
        try:
            made += reader.examples(renamed(row, spec.columns, place), place)
        except InputError as error:
            skipped.append(error)
        if time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            yield Progress(f"reading {source.name}", number, None, "rows")
    if not made:
        if not skipped:
            raise InputError(f"{source.name} has no rows", "give conversations, one a row")
        raise InputError(f"no row of {source.name} can be used; the first: {skipped[0].message}", skipped[0].hint)
    return made, skipped


def _notes(source: RowSource, reader: Reader, skipped: Sequence[InputError], made: int) -> list[str]:
    notes = [f"{source.name}: {note}" for note in source.notes]
    if skipped:
        long = sum(isinstance(error, TooLong) for error in skipped)
        what = f"{len(skipped):,} of {len(skipped) + made:,} rows are skipped"
        notes.append(f"{source.name}: {what}" + (f", {long:,} of them for their length" if long else ""))
        notes += [f"skipped: {error.message}" for error in skipped[:MAX_NOTICES]]
    if reader.shortened:
        notes.append(f"{source.name}: {reader.shortened:,} conversations lose their last turns to fit data.sequence")
    return notes
