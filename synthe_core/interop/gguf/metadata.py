"""The values of an architecture in a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from synthe_core.errors import InputError


class Header(Protocol):
    """A file, or the plan of one: values of its metadata, and tensors by name."""

    path: Path

    def get(self, key: str, default: Any = None) -> Any: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...


class Metadata:
    """The values of an architecture, whose keys begin with its name. InputError names a missing or wrong one."""

    def __init__(self, file: Header) -> None:
        self.file, self.path = file, file.path
        self.architecture = str(file.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.get(f"{self.architecture}.{key}", default)

    def layers(self) -> int:
        """The layers that predict the next token: all but those for further tokens, which a file may end with.
        Each layer has a tensor."""
        count, further = self.size("block_count"), self.optional("nextn_predict_layers")
        if count > len(self.file):
            raise self.wrong("block_count", count, f"at most {len(self.file)}, the number of tensors")
        if further >= count:
            raise self.wrong("nextn_predict_layers", further, f"fewer than {count}, the number of layers")
        return count - further

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, value, "a number")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, or a list that repeats one."""
        value = self.get(key, default)
        if hasattr(value, "tolist"):
            values = set(value.tolist())
            value = values.pop() if len(values) == 1 else value
        if type(value) is not int or value < 1:
            raise self.wrong(key, value, "a whole number above 0, the same in every layer")
        return value

    def sizes(self, key: str, count: int) -> list[int]:
        """`count` whole numbers, one a layer; one number stands for all of them."""
        value = self.get(key)
        values = value.tolist() if hasattr(value, "tolist") else [value] * count
        if len(values) != count or not all(type(each) is int and each >= 0 for each in values):
            raise self.wrong(key, value, f"a whole number, or {count} of them")
        return values

    def rounded(self, key: str, default: float | None = None) -> float:
        """A float32 number as the short decimal that it was."""
        return float(f"{self.number(key, default):.6g}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def flags(self, key: str, count: int) -> list[bool] | None:
        """`count` values that are true or false, one a layer; None if the key is missing."""
        if (value := self.get(key)) is None:
            return None
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, list) or len(values) != count or not all(each in (0, 1) for each in values):
            raise self.wrong(key, value, f"{count} times true or false")
        return [bool(each) for each in values]

    def has(self, tensor: str) -> bool:
        """Whether some layer has a tensor of this name."""
        return any(f"blk.{i}.{tensor}" in self.file for i in range(self.layers()))

    def optional(self, key: str) -> int:
        """A whole number; 0 for one that is missing."""
        value = self.get(key, 0)
        if type(value) is not int or value < 0:
            raise self.wrong(key, value, "a whole number")
        return value

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        problem = "is missing" if value is None else f"is {str(value)[:60]!r}"
        return InputError(
            f"{self.path}: {self.architecture}.{key} {problem}, and should be {expected}", "fetch the file again"
        )
