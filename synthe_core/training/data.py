"""What a run trains and validates on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from threading import Event as Stop
from typing import Any, Protocol

from synthe_core.data.labelled import Labelled, LabelledStream
from synthe_core.data.prepare import Packed
from synthe_core.data.shards import Split
from synthe_core.data.stream import Batch, Stream, Window, num_windows, windows
from synthe_core.data.streaming.streamed_data import Streamed
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.recipe.schema import Recipe


class TrainingStream(Protocol):
    """An endless stream of batches, in an order that a cursor restores exactly."""

    def next(self, count: int, rows: slice | None = None) -> Batch:
        """The next `count` sequences, or only these `rows` of them; the stream moves on by `count` either way."""
        ...

    def cursor(self) -> dict[str, Any]: ...

    def seek(self, cursor: dict[str, Any]) -> None: ...


class TrainingData(ABC):
    """The stream of training batches, and what is held out for validation, in windows: stretches of text, passages, or
    conversations.

    sequence: the most tokens of a row. classes: the names of an encoder's classes. bytes_per_token: of the training
    text; None where it is not text that is predicted. canary: text that each validation reads too.
    """

    sequence: int
    tokenizer: Tokenizer
    stream: TrainingStream
    source_names: list[str]
    classes: tuple[str, ...] = ()
    bytes_per_token: float | None = None
    canary: Split | None = None

    @property
    @abstractmethod
    def validation_length(self) -> int:
        """Tokens of a validation window."""

    @property
    @abstractmethod
    def num_validation_windows(self) -> int:
        """How many windows there are to validate on."""

    @abstractmethod
    def validation_windows(self, limit: int, rows: int) -> Iterator[Window] | Iterator[Batch]:
        """`limit` of them, `rows` at a time, spread evenly over all."""

    @property
    @abstractmethod
    def epoch(self) -> int | None:
        """How many training sequences, passages or rows there are; None where that is not known."""

    def close(self) -> None:  # noqa: B027
        """Ends what reads ahead."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the run depends on: the tokenizer, the tokens of each source and of the validation text by size and
        digest; of an encoder, its classes too."""

    def difference(self, fingerprint: Any) -> str | None:
        """How the text differs from the `fingerprint` that a run has stored, as a sentence; None if it does not."""
        now = self.fingerprint()
        if fingerprint == now:
            return None
        then = fingerprint if isinstance(fingerprint, dict) else {}
        changed = "the training text is not what it was"
        if then.get("tokenizer") != now["tokenizer"]:
            return f"{changed}: its tokenizer is another"
        names = self.source_names
        tokens, digests = then.get("tokens"), then.get("digests")
        if (
            not isinstance(tokens, list)
            or not isinstance(digests, list)
            or not len(tokens) == len(digests) == len(names)
        ):
            return f"{changed}: its sources are others"
        for name, had, has, was, digest in zip(names, tokens, now["tokens"], digests, now["digests"], strict=True):
            if had != has:
                return f"{changed}: '{name}' has changed since the run began: {has} training tokens, not {had}"
            if was != digest:
                return f"{changed}: '{name}' has changed since the run began: as many tokens, but others"
        if then.get("validation") != now["validation"]:
            return "the validation text is not what it was: it has changed since the run began"
        return f"{changed}: its classes are others"


class StreamedData(TrainingData):
    """Running text that is read while it is trained on. How much there is of it is not known."""

    def __init__(self, recipe: Recipe, streamed: Streamed, stop: Stop | None = None) -> None:
        self.sequence, self.tokenizer = recipe.data.sequence, streamed.tokenizer
        self.source_names = [text.name for text in streamed.sources]
        self._streamed, self._validation = streamed, streamed.validation
        self.stream = self._batches = streamed.batches(recipe.seed, stop)
        if self._validation.tokens:
            self.bytes_per_token = self._validation.bytes / self._validation.tokens

    @property
    def validation_length(self) -> int:
        return min(self.sequence, self._validation.tokens - 1)

    @property
    def num_validation_windows(self) -> int:
        return num_windows(self._validation, self.sequence)

    @property
    def epoch(self) -> None:
        return None

    def validation_windows(self, limit: int, rows: int) -> Iterator[Window]:
        return windows(self._validation, self.sequence, limit, rows)

    def fingerprint(self) -> dict[str, Any]:
        """Of the training text only how it is read: the cursor says which text it is."""
        return {
            "tokenizer": self.tokenizer.digest,
            "tokens": [0] * len(self.source_names),
            "digests": self._streamed.digests(),
            "validation": self._validation.digest,
        }

    def close(self) -> None:
        self._batches.close()


class TextData(TrainingData):
    """Running text; of an encoder, labelled passages."""

    def __init__(self, recipe: Recipe, packed: Packed) -> None:
        self.sequence = recipe.data.sequence
        self._packed = packed
        self.tokenizer = packed.tokenizer
        self.source_names = [source.name for source in packed.train]
        spec, head = recipe.train, recipe.model.head
        self._labelled = None if head is None else Labelled.of(packed, head.classes)
        self.stream = self._stream = (
            Stream(packed, spec.batch, recipe.data.sequence, recipe.seed, spec.carry)
            if self._labelled is None
            else LabelledStream(packed, self._labelled, spec.batch, recipe.seed)
        )
        if self._labelled is not None:
            self.classes = self._labelled.classes
        else:
            splits = [source.train for source in packed.train]
            self.bytes_per_token = sum(split.bytes for split in splits) / sum(split.tokens for split in splits)

    @property
    def validation_length(self) -> int:
        """Tokens of a validation window."""
        return min(self.sequence, self._packed.validation.tokens - 1)

    @property
    def num_validation_windows(self) -> int:
        """How many windows or passages there are to validate on."""
        if self._labelled is not None:
            return len(self._labelled.validation.starts)
        return num_windows(self._packed.validation, self.sequence)

    @property
    def epoch(self) -> int:
        return self._stream.sequences

    def validation_windows(self, limit: int, rows: int) -> Iterator[Window] | Iterator[Batch]:
        """`limit` of them, `rows` at a time, spread evenly over the validation text."""
        if self._labelled is not None:
            return self._labelled.windows(limit, rows)
        return windows(self._packed.validation, self.sequence, limit, rows)

    def fingerprint(self) -> dict[str, Any]:
        facts = {
            "tokenizer": self.tokenizer.digest,
            "tokens": [source.train.tokens for source in self._packed.train],
            "digests": [source.train.digest for source in self._packed.train],
            "validation": self._packed.validation.digest,
        }
        return facts if self._labelled is None else facts | {"classes": list(self.classes)}
