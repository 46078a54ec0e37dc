"""What is known of an architecture of GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.interop.gguf.metadata import Metadata


class Place(NamedTuple):
    """Where a tensor is in a file: the names of those that it is made of, and which part of each along its first
    dimension; None for all of it."""

    names: tuple[str, ...]
    part: int | None = None


Names = Mapping[str, str | tuple[str, ...] | Place]
Transform = Callable[..., Tensor]
"""Makes transformers' tensor of the stored ones. If it is no `Change`, it only moves numbers and keeps the shape."""


@dataclass(frozen=True)
class Change:
    """A transform with its inverse. read: of the stored tensors transformers'; write: the stored ones, or the one."""

    read: Callable[..., Tensor]
    write: Callable[[Tensor], Tensor | Sequence[Tensor]]

    def __call__(self, *stored: Tensor) -> Tensor:
        return self.read(*stored)


LOG_A = Change(lambda a: a.double().neg().log(), lambda A_log: -A_log.double().exp())
"""A file has A = -exp(A_log)."""
ONE_MORE = Change(lambda w: w.double() - 1, lambda w: w.double() + 1)
"""A file has 1 + w."""
NO_MIDDLE = Change(lambda t: t[:, None] if t.dim() == 2 else t, lambda t: t.squeeze(1) if t.dim() == 3 else t)
"""A file has a convolution without its middle dimension, which is 1."""
Transforms = Mapping[str, Transform]


def no_transforms(config: dict[str, Any]) -> Transforms:
    return {}


def no_names(data: Metadata) -> Names:
    return {}


class Architecture(NamedTuple):
    """config: transformers' config.json of a file. names: transformers' names, with `{i}` for a layer and `{e}` for an
    expert, and those of GGUF, where experts are one tensor; both without `.weight` and `.bias`. Where transformers has
    one tensor for several of GGUF, these are a tuple, and a transform joins them. a `Place` is a part of one.
    transforms: by the last two parts of transformers' name or by the last one. more: names that depend on the
    metadata."""

    config: Callable[[Metadata], dict[str, Any]]
    names: Names
    transforms: Callable[[dict[str, Any]], Transforms] = no_transforms
    more: Callable[[Metadata], Names] = no_names


def transform_of(transforms: Transforms, name: str) -> Transform | None:
    """That of transformers' tensor of a name."""
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    return transforms.get(".".join(parts[-2:])) or transforms.get(parts[-1])
