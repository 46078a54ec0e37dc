"""What is known of an architecture of GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.interop.gguf.metadata import Metadata

Transform = Callable[..., Tensor]
Transforms = Mapping[str, Transform]
Names = Mapping[str, str | tuple[str, ...]]


def no_transforms(config: dict[str, Any]) -> Transforms:
    return {}


def no_names(data: Metadata) -> Names:
    return {}


class Architecture(NamedTuple):
    """config: transformers' config.json of a file. names: transformers' names, with `{i}` for a layer and `{e}` for an
    expert, and those of GGUF, where experts are one tensor; both without `.weight` and `.bias`. Where transformers has
    one tensor for several of GGUF, these are a tuple, and a transform joins them. transforms: what makes transformers'
    tensor of the stored ones, by the last two parts of its name or by the last one. more: names that depend on the
    metadata."""

    config: Callable[[Metadata], dict[str, Any]]
    names: Names
    transforms: Callable[[dict[str, Any]], Transforms] = no_transforms
    more: Callable[[Metadata], Names] = no_names
