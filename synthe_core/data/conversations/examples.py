"""Rows of conversations as tokens, on disk: what the trainer reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.data.conversations.training_text import TrainingTokens
from synthe_core.storage.atomic import new_file
from synthe_core.storage.tensor_file import TensorFile, save_tensors

FORMAT = "2"


class Text(NamedTuple):
    """ids int32 [n], and which of them are trained on, bool [n]."""

    ids: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, tokens: TrainingTokens) -> Text:
        return cls(np.array(tokens.ids, np.int32), np.array(tokens.trained, np.bool_))


class Example(NamedTuple):
    """A row in tokens. texts: one of a conversation or a rating; chosen and rejected of a preference.

    good: of a rating, whether it is a good answer. key: a hash of what stands before the first answer: rows with the
    same prompt have the same.
    """

    texts: Sequence[Text]
    good: bool = True
    key: int = 0

    @property
    def digest(self) -> int:
        """A hash of all tokens, equal for equal rows."""
        parts = [len(text.ids).to_bytes(8, "big") + text.ids.tobytes() + text.trained.tobytes() for text in self.texts]
        return _hash(b"".join(parts) + bytes([self.good]))


class Examples:
    """Examples in a file that is mapped into memory.

    Tensors: ids int32 and trained bool, all texts one after another; ends int64 [N x texts], where each ends; good bool
    [N]; keys and digests int64 [N].
    """

    def __init__(self, path: Path) -> None:
        file = TensorFile(path)
        self.path = path
        self.facts: dict[str, Any] = json.loads(file.metadata["facts"])
        self.texts: int = self.facts["texts"]
        self.good, self.keys, self.digests = (file[name].numpy() for name in ("good", "keys", "digests"))
        self._ids, self._trained, self._ends = (file[name] for name in ("ids", "trained", "ends"))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def skipped(self) -> int:
        """Rows of the source that could not be used."""
        return int(self.facts["skipped"])

    def text(self, example: int, number: int) -> tuple[Tensor, Tensor]:
        """(ids int64 [n], trained bool [n]) of text `number` of an example."""
        place = example * self.texts + number
        begin = int(self._ends[place - 1]) if place else 0
        span = slice(begin, int(self._ends[place]))
        return self._ids[span].long(), self._trained[span]

    def lengths(self) -> np.ndarray:
        """int64 [N, texts]: tokens of each text."""
        return np.diff(self._ends.numpy(), prepend=0).reshape(-1, self.texts)

    def trained(self, chosen: np.ndarray) -> int:
        """How many tokens of the `chosen` examples are trained on."""
        return sum(int(self.text(int(each), n)[1].sum()) for each in chosen for n in range(self.texts))

    def digest(self, chosen: np.ndarray) -> str:
        """Equal for equal examples in the same order."""
        return hashlib.sha256(np.ascontiguousarray(self.digests[chosen]).tobytes()).hexdigest()


def write_examples(path: Path, examples: Sequence[Example], texts: int, facts: dict[str, Any]) -> None:
    """Writes examples of `texts` texts each as a file, whole or not at all."""
    flat = [text for example in examples for text in example.texts]
    tensors = {
        "ids": torch.from_numpy(_joined([text.ids for text in flat], np.int32)),
        "trained": torch.from_numpy(_joined([text.trained for text in flat], np.bool_)),
        "ends": torch.tensor([len(text.ids) for text in flat], dtype=torch.int64).cumsum(0),
        "good": torch.tensor([each.good for each in examples], dtype=torch.bool),
        "keys": torch.tensor([each.key for each in examples], dtype=torch.int64),
        "digests": torch.tensor([each.digest for each in examples], dtype=torch.int64),
    }
    with new_file(path, wait=60) as partial:
        save_tensors(tensors, partial, {"facts": json.dumps(facts | {"texts": texts})})


def key_of(text: str) -> int:
    """The hash of a prompt."""
    return _hash(text.encode("utf-8", "surrogatepass"))


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
