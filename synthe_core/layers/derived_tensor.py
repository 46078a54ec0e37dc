"""A tensor that follows from weights alone, computed again only after one of them has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class DerivedTensor:
    """The last value of a function of weights. While gradients are recorded, and within torch.compile or a graph's
    capture, it is computed anew: there it is part of what is differentiated, traced or captured."""

    def __init__(self) -> None:
        self._last: tuple[list[tuple[Tensor, int, int]], Tensor] | None = None

    def get(self, weights: Iterable[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """compute(), or what it returned the last time if all `weights` are as they were then."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_capturing():
            return compute()
        versions = [(weight, weight.data_ptr(), _version(weight)) for weight in weights]
        last = self._last  # read once: another thread may replace it
        if last is None or not _same(last[0], versions):
            last = self._last = versions, compute()
        return last[1]

    def __deepcopy__(self, memo: object) -> DerivedTensor:
        return DerivedTensor()  # a copied module has other weights


def _same(one: list[tuple[Tensor, int, int]], other: list[tuple[Tensor, int, int]]) -> bool:
    return len(one) == len(other) and all(
        a is b and numbers == others for (a, *numbers), (b, *others) in zip(one, other, strict=True)
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
