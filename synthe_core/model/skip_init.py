"""Builds a model without random initial values, for one whose weights are loaded next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = (
    *(nn.init.normal_, nn.init.uniform_, Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.random_),
    *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_),
)


class _SkipInit(TorchFunctionMode):
    """Skips the random initialisation of tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skip_init() -> Iterator[None]:
    """Within the block random initialisation is skipped, and the caller's random state does not change. Tensors that
    would be drawn are undefined until they are loaded."""
    with torch.random.fork_rng(devices=[]), _SkipInit():
        yield
