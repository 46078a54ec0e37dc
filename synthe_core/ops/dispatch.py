"""An operator is its reference recurrence; kernels are faster ways to the same numbers, each of which may refuse.

    @op
    def linear_scan(decay, value, state): ...                       # the definition, readable, any dtype

    @linear_scan.kernel("blocked", rank=10, tolerance=1e-5)         # higher rank is tried first
    def blocked(decay, value, state): ...

    @blocked.refuses
    def _(hardware, call): return None if call.time > 1 else "a single step: the reference is as fast"

A call runs the highest-ranked kernel that does not refuse. `explain` says which, and why the others did not serve.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError, unknown
from synthe_core.hardware.probe import Hardware, probe

NONE_FORCED: Mapping[str, str] = MappingProxyType({})
_forced: ContextVar[Mapping[str, str]] = ContextVar("forced_kernels", default=NONE_FORCED)
_preferred: ContextVar[Mapping[str, str]] = ContextVar("preferred_kernels", default=NONE_FORCED)
_heard: ContextVar[Ear | None] = ContextVar("heard_calls", default=None)

OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Call:
    """What a kernel may look at before it accepts: the first tensor's facts, and every argument by name."""

    device: str
    dtype: torch.dtype
    time: int
    grad: bool
    arguments: dict[str, Any]

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Call:
        tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
        first = tensors[0]
        grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return cls(first.device.type, first.dtype, first.shape[1], grad, arguments)


class Choice(NamedTuple):
    """One kernel in an explanation: `reason` is why it does not serve, None for one that would."""

    kernel: str
    reason: str | None
    chosen: bool


class Kernel:
    """A named implementation of an operator, with the reason it gives when it cannot serve a call."""

    def __init__(self, fn: Callable[..., Any], name: str, rank: int, tolerance: float) -> None:
        self.fn = fn
        self.name = name
        self.rank = rank
        self.tolerance = tolerance
        self.refusal: Callable[[Hardware, Call], str | None] = lambda hardware, call: None
        self.__doc__ = fn.__doc__

    def refuses(self, refusal: Callable[[Hardware, Call], str | None]) -> Callable[[Hardware, Call], str | None]:
        """Decorator: `refusal(hardware, call)` gives the reason in words, or None to accept."""
        self.refusal = refusal
        return refusal

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


class Op:
    """An operator; calling it dispatches. `reference` is its definition, `used` the kernels that have run."""

    def __init__(self, reference: Callable[..., Any]) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.kernels: list[Kernel] = []
        self.used: set[str] = set()
        self.__doc__ = reference.__doc__
        self._parameters = list(inspect.signature(reference).parameters)
        OPS[self.name] = self

    def kernel(self, name: str, *, rank: int, tolerance: float) -> Callable[[Callable[..., Any]], Kernel]:
        """Decorator: adds an implementation. `tolerance` is its largest relative error in float32."""

        def add(fn: Callable[..., Any]) -> Kernel:
            kernel = Kernel(fn, name, rank, tolerance)
            self.kernels.append(kernel)
            self.kernels.sort(key=lambda k: -k.rank)
            return kernel

        return add

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (ear := _heard.get()) is None:
            return self._serve(*args, **kwargs)
        if ear.only is None or self.name in ear.only:
            ear.calls.append((self, Call.of(dict(zip(self._parameters, args, strict=False)) | kwargs)))
        token = _heard.set(None)  # which operators a kernel calls in its turn is its own affair
        try:
            return self._serve(*args, **kwargs)
        finally:
            _heard.reset(token)

    def _serve(self, *args: Any, **kwargs: Any) -> Any:
        forced = _forced.get().get(self.name)
        if forced is not None:
            self.used.add(forced)
            return self.named(forced)(*args, **kwargs)
        call = Call.of(dict(zip(self._parameters, args, strict=False)) | kwargs)
        hardware = probe()
        for kernel in self._tried(call):
            if kernel.refusal(hardware, call) is None:
                self.used.add(kernel.name)
                return kernel.fn(*args, **kwargs)
        self.used.add("reference")
        return self.reference(*args, **kwargs)

    def _tried(self, call: Call) -> list[Kernel]:
        """The kernels in order of rank, one that is preferred for whole passes first."""
        first = _preferred.get().get(self.name)
        if first is None or call.time == 1:
            return self.kernels
        return sorted(self.kernels, key=lambda kernel: kernel.name != first)

    def named(self, name: str) -> Callable[..., Any]:
        """The kernel of that name, or the reference."""
        if name == "reference":
            return self.reference
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel
        raise unknown(f"kernel of {self.name}", name, ["reference", *(k.name for k in self.kernels)])

    def explain(self, call: Call, hardware: Hardware | None = None) -> list[Choice]:
        """Every kernel in the order it is tried, with the reason of those that refuse this call."""
        hardware = hardware or probe()
        choices: list[Choice] = []
        taken = False
        for kernel in self._tried(call):
            reason = kernel.refusal(hardware, call)
            choices.append(Choice(kernel.name, reason, reason is None and not taken))
            taken = taken or reason is None
        choices.append(Choice("reference", None, not taken))
        return choices


def op(reference: Callable[..., Any]) -> Op:
    """Makes an operator of its reference recurrence."""
    return Op(reference)


@contextmanager
def use_kernels(**choices: str) -> Iterator[None]:
    """Within the block, operator `name` runs the kernel given for it: `use_kernels(delta_rule="reference")`."""
    for name, kernel in choices.items():
        if name not in OPS:
            raise unknown("operator", name, OPS)
        OPS[name].named(kernel)
    token = _forced.set({**_forced.get(), **choices})
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def prefer_kernels(**choices: str) -> Iterator[None]:
    """Within the block, operator `name` tries the kernel given for it first, where a call is of more than one token."""
    token = _preferred.set({**_preferred.get(), **choices})
    try:
        yield
    finally:
        _preferred.reset(token)


class Ear(NamedTuple):
    """The calls heard so far, and the names of the operators that are listened to; None for all."""

    calls: list[tuple[Op, Call]]
    only: Container[str] | None


@contextmanager
def hear_calls(only: Container[str] | None = None) -> Iterator[list[tuple[Op, Call]]]:
    """Within the block, calls of operators (of the names `only`) from outside of one are noted, with their arguments:
    what `synthe hardware` explains, and `synthe introspect` follows back."""
    heard = Ear([], only)
    token = _heard.set(heard)
    try:
        yield heard.calls
    finally:
        _heard.reset(token)


def require_float(name: str, tensor: Tensor) -> None:
    """Operators compute in float32 or float64; anything narrower is the caller's to widen."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} must be float32 or float64, not {tensor.dtype}", "cast it before the operator")


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are computed in: autocast's type where it is on, else its own."""
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype
