"""What is known of an architecture of GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.interop.gguf.metadata import Metadata

Transform = Callable[[Tensor], Tensor]
Transforms = Mapping[str, Transform]


def no_transforms(config: dict[str, Any]) -> Transforms:
    return {}


class Architecture(NamedTuple):
    """config: transformers' config.json of a file. names: transformers' names, with `{i}` for a layer and `{e}` for an
    expert, and those of GGUF, where experts are one tensor; both without `.weight` and `.bias`. transforms: what makes
    transformers' tensor of the stored one, by the last part of its name."""

    config: Callable[[Metadata], dict[str, Any]]
    names: Mapping[str, str]
    transforms: Callable[[dict[str, Any]], Transforms] = no_transforms
