"""An operator is its reference recurrence; kernels are faster ways to the same numbers, each of which may refuse.

    @op
    def linear_scan(decay, value, state): ...                       # the definition, readable, any dtype

    @linear_scan.kernel("blocked", rank=10, tolerance=1e-5)         # higher rank is tried first
    def blocked(decay, value, state): ...

    @blocked.refuses
    def _(hardware, call): return None if call.time > 1 else Slower("a single step: the reference is as fast")

A call runs the highest-ranked kernel that does not refuse. `explain` says which, and why the others did not serve.
The active `ExecutionContext` (hardware/execution.py) changes the choice: a forced kernel runs, or is an error where it
cannot; a tuned kernel is tried first; where batch invariance is asked for, only kernels that declare it are considered.

A kernel is batch-invariant on a type of device if each row of its result has the same bits whatever rows stand beside
it. It declares that with `batch_invariant=("cpu",)`, and tests/laws/test_batch_invariance.py checks it on the CPU. A
CUDA kernel declares "cuda" once that was measured on a GPU; none does so far.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from synthe_core.errors import InputError, unknown
from synthe_core.hardware.execution import ExecutionContext, active_context
from synthe_core.hardware.probe import Hardware, probe

OPS: dict[str, Op] = {}
PRIMITIVES: dict[str, Primitive] = {}


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


class Slower(str):
    """A refusal for speed alone: the kernel could serve the call, and does so where it is forced."""


class Choice(NamedTuple):
    """One kernel in an explanation: `reason` is why it does not serve, None for one that would."""

    kernel: str
    reason: str | None
    chosen: bool


class Kernel:
    """A named implementation of an operator, with the reason it gives when it cannot serve a call."""

    def __init__(
        self, fn: Callable[..., Any], name: str, rank: int, tolerance: float, batch_invariant: Collection[str] = ()
    ) -> None:
        self.fn = fn
        self.name = name
        self.rank = rank
        self.tolerance = tolerance
        self.batch_invariant = frozenset(batch_invariant)
        self.refusal: Callable[[Hardware, Call], str | None] = lambda hardware, call: None
        self.__doc__ = fn.__doc__

    def refuses(self, refusal: Callable[[Hardware, Call], str | None]) -> Callable[[Hardware, Call], str | None]:
        """Decorator: `refusal(hardware, call)` gives the reason in words, or None to accept."""
        self.refusal = refusal
        return refusal

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


class Op:
    """An operator; calling it dispatches. `reference` is its definition, `used` the kernels that have run.

    batch_invariant: the types of device on which the reference is.
    """

    def __init__(self, reference: Callable[..., Any], batch_invariant: Collection[str] = ()) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.batch_invariant = frozenset(batch_invariant)
        self.kernels: list[Kernel] = []
        self.used: set[str] = set()
        self.across: Callable[..., Any] | None = None
        self.__doc__ = reference.__doc__
        self._parameters = list(inspect.signature(reference).parameters)
        self._register()

    def _register(self) -> None:
        OPS[self.name] = self

    def kernel(
        self, name: str, *, rank: int, tolerance: float, batch_invariant: Collection[str] = ()
    ) -> Callable[[Callable[..., Any]], Kernel]:
        """Decorator: adds an implementation. `tolerance` is its largest relative error in float32, `batch_invariant`
        the types of device on which it is."""

        def add(fn: Callable[..., Any]) -> Kernel:
            kernel = Kernel(fn, name, rank, tolerance, batch_invariant)
            self.kernels.append(kernel)
            self.kernels.sort(key=lambda k: -k.rank)
            return kernel

        return add

    def over_ranks(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `fn(ranks, ...)` runs a call whose tokens follow those of lower ranks (`ops/sequence`)."""
        self.across = fn
        return fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder, context = _recording.recorder, active_context()
        if context.sequence is not None and self.across is not None:
            return self.across(context.sequence, *args, **kwargs)
        call = Call.of(dict(zip(self._parameters, args, strict=False)) | kwargs)
        name, run = self._select(call, context)
        self.used.add(name)
        if recorder is None:
            return run(*args, **kwargs)
        if recorder.only is None or self.name in recorder.only:
            recorder.calls.append(RecordedCall(self, call, name))
        _recording.recorder = None  # the operators that a kernel calls itself are not recorded
        try:
            return run(*args, **kwargs)
        finally:
            _recording.recorder = recorder

    def _select(self, call: Call, context: ExecutionContext) -> tuple[str, Callable[..., Any]]:
        """The kernel that serves a call in a context, with its name."""
        hardware = probe()
        if (forced := context.forced_kernel(self.name)) is not None:
            return forced, self._forced(forced, call, hardware, context.batch_invariant)
        for kernel in self._ordered(call, context):
            if kernel.refusal(hardware, call) is None:
                if context.batch_invariant and call.device not in kernel.batch_invariant:
                    continue
                return kernel.name, kernel.fn
        if context.batch_invariant and call.device not in self.batch_invariant:
            raise self._not_invariant(call.device)
        return "reference", self.reference

    def _not_invariant(self, device: str) -> InputError:
        return InputError(
            f"no kernel that can serve a call of {self.name} on {device} is batch-invariant",
            "use a context without batch invariance",
        )

    def declares(self, name: str, device: str) -> bool:
        """Whether the kernel of that name is batch-invariant on a type of device."""
        implementation = self.named(name)
        return device in (implementation if isinstance(implementation, Kernel) else self).batch_invariant

    def _forced(self, name: str, call: Call, hardware: Hardware, batch_invariant: bool) -> Callable[..., Any]:
        """The kernel of that name; InputError where it cannot serve the call."""
        implementation = self.named(name)
        if batch_invariant and not self.declares(name, call.device):
            raise InputError(
                f"kernel {name} of {self.name} is forced, and is not batch-invariant on {call.device}",
                "choose another in runtime.kernels, or use a context without batch invariance",
            )
        if not isinstance(implementation, Kernel):
            return implementation
        reason = implementation.refusal(hardware, call)
        if reason is not None and not isinstance(reason, Slower):
            raise InputError(
                f"kernel {name} of {self.name} cannot serve a call: {reason}",
                f"choose another in runtime.kernels, or leave {self.name} out of it",
            )
        return implementation.fn

    def _ordered(self, call: Call, context: ExecutionContext) -> list[Kernel]:
        """The kernels by rank; for calls of more than one token a tuned one comes first."""
        tuned = context.tuned_kernel(self.name)
        if tuned is None or call.time == 1:
            return self.kernels
        return sorted(self.kernels, key=lambda kernel: kernel.name != tuned)

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
        for kernel in self._ordered(call, active_context()):
            reason = kernel.refusal(hardware, call)
            choices.append(Choice(kernel.name, reason, reason is None and not taken))
            taken = taken or reason is None
        choices.append(Choice("reference", None, not taken))
        return choices


@overload
def op(reference: Callable[..., Any]) -> Op: ...
@overload
def op(*, batch_invariant: Collection[str]) -> Callable[[Callable[..., Any]], Op]: ...
def op(reference: Callable[..., Any] | None = None, *, batch_invariant: Collection[str] = ()) -> Any:
    """Decorator: makes an operator of its reference recurrence."""
    return partial(Op, batch_invariant=batch_invariant) if reference is None else Op(reference)


class Primitive(Op):
    """An operator that is one function of torch, which layers call a hundred times a pass.

    `torch_function` serves any call, and so does every kernel on the devices it declares. Where the active context
    forces no kernel and asks for no batch invariance, a call costs one look at it. Calls are not recorded, kernels are
    not tuned, and a compiled block (`runtime.compile`) has torch's functions.
    """

    def __init__(self, reference: Callable[..., Any], torch_function: Callable[..., Tensor]) -> None:
        super().__init__(reference)
        self.torch_function = torch_function
        self.kernels = [Kernel(torch_function, "torch", 10, 1e-6)]

    def _register(self) -> None:
        PRIMITIVES[self.name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            context = active_context()
            if context.batch_invariant or context.forced_kernel(self.name) is not None:
                return self._kernel(context)(*args, **kwargs)
        return self.torch_function(*args, **kwargs)

    def _kernel(self, context: ExecutionContext) -> Callable[..., Any]:
        """The forced kernel, or one that is batch-invariant on the context's device."""
        device = context.device.type
        if (forced := context.forced_kernel(self.name)) is not None:
            if context.batch_invariant and not self.declares(forced, device):
                raise self._not_invariant(device)
            return self.named(forced)
        for kernel in self.kernels:
            if device in kernel.batch_invariant:
                return kernel.fn
        raise self._not_invariant(device)


def primitive(torch_function: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Primitive]:
    """Decorator: makes an operator of its reference, which `torch_function` computes."""
    return partial(Primitive, torch_function=torch_function)


def batch_invariant_on(device: str, kernels: Mapping[str, str]) -> bool:
    """Whether passes with these kernels forced can be batch-invariant on a type of device: every primitive has such a
    kernel, and every forced kernel is one."""
    operators = {**OPS, **PRIMITIVES}
    for each in PRIMITIVES.values():
        if not any(device in kernel.batch_invariant for kernel in each.kernels):
            return False
    return all(operators[name].declares(kernel, device) for name, kernel in kernels.items())


def check_kernels(choices: Mapping[str, str]) -> None:
    """InputError for an operator or a kernel of `choices` (operator -> kernel) that does not exist."""
    for name, kernel in choices.items():
        if (each := OPS.get(name) or PRIMITIVES.get(name)) is None:
            raise unknown("operator", name, [*OPS, *PRIMITIVES])
        each.named(kernel)


@contextmanager
def use_kernels(**choices: str) -> Iterator[None]:
    """Within the block, the active context with these kernels forced too: `use_kernels(delta_rule="reference")`."""
    check_kernels(choices)
    context = active_context()
    with replace(context, kernels={**context.kernels, **choices}).activate():
        yield


class RecordedCall(NamedTuple):
    """A call of an operator and the name of the kernel that served it."""

    op: Op
    call: Call
    kernel: str


@dataclass
class OpRecorder:
    """`calls` of the operators named in `only` (None: of all), in order."""

    only: Container[str] | None = None
    calls: list[RecordedCall] = field(default_factory=list)


class _Recording(threading.local):
    recorder: OpRecorder | None = None


_recording = _Recording()


@contextmanager
def record_ops(only: Container[str] | None = None) -> Iterator[OpRecorder]:
    """Within the block this thread's calls of operators are recorded, except those that kernels make themselves."""
    recorder = OpRecorder(only)
    outer, _recording.recorder = _recording.recorder, recorder
    try:
        yield recorder
    finally:
        _recording.recorder = outer


def require_float(name: str, tensor: Tensor) -> None:
    """Operators compute in float32 or float64; anything narrower is the caller's to widen."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} must be float32 or float64, not {tensor.dtype}", "cast it before the operator")


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are computed in: autocast's type where it is on, else its own."""
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype
