"""What torch.compile leaves alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def not_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, before which torch.compile ends a graph, and which it does not compile.

    This is `torch.compiler.disable`, which imports the compiler: half of the time that a command takes to start. Here
    it is applied once the compiler has been imported by something that compiles.
    """
    disabled: Callable[P, T] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **keys: P.kwargs) -> T:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **keys)
            disabled = torch.compiler.disable(function)
        return disabled(*args, **keys)

    call.__dict__["_torchdynamo_disable"] = True  # what torch.compile looks for before it reads a function
    return call
