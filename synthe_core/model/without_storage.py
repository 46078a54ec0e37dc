"""Models that are built without storage for what is large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from synthe_core.model.skip_init import skip_init
from synthe_core.quantization.formats import MIN_NUMBERS

Size = Iterable[int]
OPTIONS = ("dtype", "device", "requires_grad", "layout", "pin_memory", "generator", "out", "memory_format")


def _repeated(tensor: Tensor, *times: Any) -> Size:
    counts = _flat(times)
    sizes = [1] * (len(counts) - tensor.dim()) + list(tensor.shape)
    return [count * size for count, size in zip(counts, sizes, strict=True)]


def _flat(size: tuple[Any, ...]) -> list[int]:
    """A size given as numbers, or as one sequence."""
    return list(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)


FACTORIES: dict[Callable[..., Any], Callable[..., Size]] = {
    **dict.fromkeys(
        (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn),
        lambda *numbers, size=None: _flat(numbers) if size is None else size,
    ),
    torch.full: lambda size, fill_value: size,
    torch.eye: lambda n, m=None: (n, n if m is None else m),
    torch.arange: lambda *ends: (len(range(*map(int, ends))),),
    **dict.fromkeys((torch.linspace, torch.logspace), lambda start, end, steps: (steps,)),
    Tensor.repeat: _repeated,
}
"""What makes tensors, and the size of what it makes: to say it torch itself imports sympy or its compiler, 0.6 s."""


class _LargeOnMeta(TorchFunctionMode):
    """Large tensors of some factories are made on the meta device, without storage."""

    def __init__(self, *factories: Callable[..., Any]) -> None:
        super().__init__()
        self._factories = factories

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._factories:
            named = {name: value for name, value in kwargs.items() if name not in OPTIONS}
            size = torch.Size(FACTORIES[func](*args, **named))
            if size.numel() >= MIN_NUMBERS:
                return torch.empty(size, dtype=kwargs.get("dtype"), device="meta")
        return func(*args, **kwargs)


@contextmanager
def without_storage() -> Iterator[None]:
    """Within the block the large parameters of a model that is built have no storage: each gets it when its tensor is
    loaded. Small tensors and constants have their values."""
    with skip_init(), _LargeOnMeta(torch.empty):
        yield


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block a model is built for the shapes of its tensors: large ones, constants too, have no storage, and
    the default type if none is given. The same as on the meta device, where torch imports its compiler to multiply."""
    with skip_init(), _LargeOnMeta(*FACTORIES):
        yield
