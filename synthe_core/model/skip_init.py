"""Building a model whose weights are about to be loaded: the initial values that nobody will see are not drawn."""

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
    """Leaves a tensor as it is where it would be filled at random."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skip_init() -> Iterator[None]:
    """Within the block random initial values are left out, and the caller's random numbers stay what they are. Every
    tensor of what is built that was to be drawn means nothing until it is loaded."""
    with torch.random.fork_rng(devices=[]), _SkipInit():
        yield
