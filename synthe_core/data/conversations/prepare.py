"""From rows of conversations, preferences and ratings to examples, once; then from the cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from synthe_core.data.chat_template import PLAIN, with_template
from synthe_core.data.conversations.examples import FORMAT, Example, Examples, Text, key_of, write_examples
from synthe_core.data.conversations.messages import Message
from synthe_core.data.conversations.rows import Conversation, Preference, Rating, parse
from synthe_core.data.conversations.sources import RowSource, renamed
from synthe_core.data.conversations.training_text import (
    Chat,
    Trained,
    TrainingText,
    TrainingTokens,
    training_texts,
    training_tokens_of_each,
)
from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress
from synthe_core.hardware.probe import cache_dir

Reads = Literal["conversations", "preferences", "ratings"]
MAX_NOTICES = 3
"""Rows that are skipped with a line each; all are counted."""
TEXTS = {"conversations": 1, "preferences": 2, "ratings": 1}


Row = Conversation | Preference | Rating
CHUNK, CHUNK_CHARACTERS, MAX_DEPTH = 128, 1 << 20, 8
"""Rows that are made into examples together, and about how long they may be; texts are not looked for deeper."""


class Tokenized(NamedTuple):
    """A text in tokens, and what stands before its first answer."""

    text: Text
    prompt: str


class TooLong(InputError):
    """An example has more tokens than a row may have."""


@dataclass
class Reader:
    """Makes examples of rows.

    sequence: the most tokens that a text may have besides its last one, which is only predicted.
    columns: names of columns of the rows by what they stand for.
    shortened: conversations that lost turns at their end to fit.
    """

    reads: Reads
    tokenizer: Tokenizer
    sequence: int
    trained: Trained = "assistant"
    columns: Mapping[str, str] = field(default_factory=dict)
    shortened: int = 0
    _begin: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None:  # as a model without one is served
            begin = self.tokenizer.begin
            self._begin = () if begin is None else (begin,)
            self.tokenizer = with_template(self.tokenizer)

    def read(self, rows: Sequence[tuple[str, Any]]) -> list[list[Example] | InputError]:
        """The examples of each (place, row): two ratings of a preference, otherwise one. An InputError says why a row
        has none."""
        given = [self._parsed(place, row) for place, row in rows]
        chats = [[] if isinstance(one, InputError) else chats_of(one, self.trained) for one in given]
        texts = iter(self.texts([chat for each in chats for chat in each]))
        made: list[list[Example] | InputError] = []
        for (place, _), one, mine in zip(rows, given, chats, strict=True):
            if isinstance(one, InputError):
                made.append(one)
                continue
            try:
                made.append(list(self._examples(one, [next(texts) for _ in mine], place)))
            except TooLong as error:
                made.append(error)
            except InputError as error:
                made.append(_at(place, error))
        return made

    def _parsed(self, place: str, row: Any) -> Row | InputError:
        try:
            read = parse(renamed(row, self.columns, place), place)
        except InputError as error:
            return error
        kind = type(read).__name__.lower()
        if f"{kind}s" == self.reads or (self.reads == "ratings" and isinstance(read, Preference)):
            return read
        return InputError(
            f"{place}: the row is a {kind}, and the objective reads {self.reads}",
            "choose another objective, such as --objective " + _OBJECTIVES[type(read)],
        )

    def texts(self, chats: Sequence[Chat]) -> list[Tokenized | InputError]:
        """The tokens of each, or why there are none."""
        texts = training_texts(self.tokenizer, chats)
        good = [text for text in texts if not isinstance(text, InputError)]
        tokens = iter(training_tokens_of_each(self.tokenizer, good))
        return [text if isinstance(text, InputError) else self._tokenized(text, next(tokens)) for text in texts]

    def _tokenized(self, given: TrainingText, tokens: TrainingTokens) -> Tokenized | InputError:
        tokens = tokens._replace(ids=[*self._begin, *tokens.ids], trained=[False] * len(self._begin) + tokens.trained)
        if not any(tokens.trained[1:]):
            return InputError("the chat template leaves no token to train on")
        return Tokenized(Text.of(tokens), given.text[: given.spans[0][0]] or given.text)

    def _examples(self, read: Row, texts: Sequence[Tokenized | InputError], place: str) -> Iterator[Example]:
        if isinstance(read, Conversation):
            text, prompt = self._shortened(read, texts[0], place)
            yield Example([text], key=key_of(prompt))
            return
        sides = [_good(each).text for each in texts]
        for side in sides:
            if not self._fits(side):
                raise self._too_long(side, place)
        key = key_of(json.dumps(read.prompt, ensure_ascii=False))
        if isinstance(read, Rating):
            yield Example(sides, read.good, key)
        elif self.reads == "preferences":
            yield Example(sides, key=key)
        else:
            yield from (Example([side], good, key) for side, good in zip(sides, (True, False), strict=True))

    def _shortened(self, read: Conversation, given: Tokenized | InputError, place: str) -> Tokenized:
        """A conversation that fits: one that is too long without its last turns."""
        messages, made = read.messages, _good(given)
        while not self._fits(made.text):
            answers = [at for at, each in enumerate(messages[:-1]) if each["role"] == "assistant"]
            if not answers or self.trained == "last":
                raise self._too_long(made.text, place)
            messages = messages[: self._last_that_fits(messages, answers, made.text) + 1]  # whole turns only
            made = _good(self.texts([Chat(messages, read.tools, self.trained)])[0])
        self.shortened += len(messages) < len(read.messages)
        return made

    def _last_that_fits(self, messages: Sequence[Message], answers: Sequence[int], text: Text) -> int:
        """Which of the `answers` is the last one that fits, by the runs of trained tokens where there is one
        an answer; otherwise the last one."""
        starts = np.flatnonzero(np.diff(text.trained.astype(np.int8), prepend=0) == 1)
        if len(starts) != len(answers) + (messages[-1]["role"] == "assistant"):
            return answers[-1]
        return answers[max(0, int((starts[: len(answers)] <= self.sequence).sum()) - 1)]

    def _fits(self, text: Text) -> bool:
        return len(text.ids) - 1 <= self.sequence

    def _too_long(self, text: Text, place: str) -> TooLong:
        return TooLong(
            f"{place}: {len(text.ids) - 1:,} tokens are more than data.sequence, {self.sequence:,}",
            "raise data.sequence",
        )


def chats_of(read: Row, trained: Trained) -> list[Chat]:
    """The texts of a row: one of a conversation or a rating, chosen and rejected of a preference."""
    if isinstance(read, Conversation):
        return [Chat(read.messages, read.tools, trained)]
    answers = [read.chosen, read.rejected] if isinstance(read, Preference) else [read.answer]
    return [Chat(read.prompt + answer, read.tools, "last") for answer in answers]


def _good(given: Tokenized | InputError) -> Tokenized:
    if isinstance(given, InputError):
        raise given
    return given


def _at(place: str, error: InputError) -> InputError:
    """The error of a text, with the place of its row."""
    return InputError(f"{place}: {error.message}", error.hint)


_OBJECTIVES = {Conversation: "sft", Preference: "dpo", Rating: "kto"}


def open_examples(
    spec: DataSpec, source: RowSource, reads: Reads, tokenizer: Tokenizer
) -> Generator[Event, None, Examples]:
    """The examples of a source; made now if they are not in the cache.

    Rows that cannot be used are skipped, and counted by a Notice that names the first of them. InputError if no row can
    be used.
    """
    path = examples_path(spec, source, reads, tokenizer)
    if path.is_file():
        try:
            examples = Examples(path)
        except (InputError, KeyError, ValueError):  # damaged: it is made again
            path.unlink()
        else:
            yield from map(lambda note: Notice(note, "warning"), examples.facts["notes"])
            return examples
    reader = Reader(reads, tokenizer, spec.sequence, spec.trained, spec.columns)
    made, skipped = yield from _read(source, reader)
    notes = _notes(source, reader, skipped, len(made))
    yield from map(lambda note: Notice(note, "warning"), notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_examples(path, made, TEXTS[reads], {"skipped": len(skipped), "shortened": reader.shortened, "notes": notes})
    return Examples(path)


def examples_path(spec: DataSpec, source: RowSource, reads: Reads, tokenizer: Tokenizer) -> Path:
    """The file of the cache that has, or will have, the examples of a source."""
    template = tokenizer.chat_template or PLAIN
    options = [reads, spec.sequence, spec.trained, dict(spec.columns)]
    identity = json.dumps([FORMAT, source.identity(), tokenizer.digest, tokenizer.begin, template, options])
    return cache_dir() / "examples" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def _read(source: RowSource, reader: Reader) -> Generator[Event, None, tuple[list[Example], list[InputError]]]:
    made: list[Example] = []
    skipped: list[InputError] = []
    began = shown = time.monotonic()
    done = 0
    for chunk in chunks(source.rows()):
        for result in reader.read(chunk):
            if isinstance(result, InputError):
                skipped.append(result)
            else:
                made += result
        done += len(chunk)
        if (now := time.monotonic()) - shown > 0.2:
            shown = now
            part = source.part(chunk[-1][0])
            total, eta = (round(done / part), (now - began) * (1 - part) / part) if part else (None, None)
            yield Progress(f"reading {source.name}", done, total, "rows", eta)
    if not made:
        if not skipped:
            raise InputError(f"{source.name} has no rows", "give conversations, one a row")
        raise InputError(f"no row of {source.name} can be used; the first: {skipped[0].message}", skipped[0].hint)
    return made, skipped


def chunks(rows: Iterator[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """The rows, as many at a time as are quickly read together."""
    chunk: list[tuple[str, Any]] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += _characters(row[1])
        if len(chunk) >= CHUNK or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _characters(value: Any, depth: int = 0) -> int:
    """About how long a row is."""
    if isinstance(value, str):
        return len(value)
    if depth > MAX_DEPTH or not isinstance(value, list | dict):
        return 0
    return sum(_characters(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value))


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
