"""How the passes of a model run: an immutable value, made once, owned by the model and active only around its passes.

    context = context_for(recipe, device="auto")     # hardware/recipe_context.py; or ExecutionContext(...) by hand
    with context.activate():
        model.next_logits(tokens)

Dispatch (`ops/dispatch.py`) reads `active_context()`. The activation is of the current thread, nests, and ends with the
block. Do not `yield` from a generator inside the block, nor `await`: the caller would run in it too.

It is a thread's own variable and no `ContextVar`: torch.compile reads and guards the one, and breaks the graph at the
other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.hardware.sequence import SequenceRanks


@dataclass(frozen=True)
class ExecutionContext:
    """Device, precision, kernels and threads of a model's passes.

    device:          where the weights and the inputs are.
    precision:       "float32", or "bfloat16" for autocast of matrix products.
    kernels:         operator -> kernel, forced (a recipe's `runtime.kernels`); one that cannot serve a call is an
                     error.
    tuned_kernels:   operator -> kernel, preferred (what `synthe hardware --tune` measured) for calls of more than one
                     token; one that refuses a call is passed over.
    batch_invariant: only kernels that declare batch invariance on the device may serve a call. Make such a context
                     before the process's first matrix product (see `hardware/mkl.py`).
    threads:         CPU threads of an operation; None leaves torch's setting alone.
    sequence:        the ranks over which sequences are cut (`synthe_core.ops.sequence`); None where they are whole.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    kernels: Mapping[str, str] = field(default_factory=dict)
    tuned_kernels: Mapping[str, str] = field(default_factory=dict)
    batch_invariant: bool = False
    threads: int | None = None
    sequence: SequenceRanks | None = None
    _forced: dict[str, str] = field(init=False, repr=False, compare=False)  # dicts, which torch.compile can read
    _tuned: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forced", dict(self.kernels))
        object.__setattr__(self, "_tuned", dict(self.tuned_kernels))
        for name in ("kernels", "tuned_kernels"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if self.batch_invariant:
            request_strict_mode()

    def forced_kernel(self, operator: str) -> str | None:
        """The kernel that the operator is computed with whatever the ranking; None where none is forced."""
        return self._forced.get(operator)

    def tuned_kernel(self, operator: str) -> str | None:
        """The kernel that is tried first for calls of more than one token; None for the ranking."""
        return self._tuned.get(operator)

    @contextmanager
    def activate(self) -> Iterator[ExecutionContext]:
        """Within the block this thread's passes run in this context, and in no part of the one around it."""
        outer = _active.context
        _active.context = self
        try:
            with ExitStack() as stack:
                if self.precision != outer.precision:
                    enabled = self.precision == "bfloat16"
                    stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=enabled))
                if self.threads is not None and self.threads != (threads := torch.get_num_threads()):
                    torch.set_num_threads(self.threads)
                    stack.callback(torch.set_num_threads, threads)
                yield self
        finally:
            _active.context = outer

    def synchronize(self) -> None:
        """Waits until the device has finished its queued work; a CPU has none."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


DEFAULT = ExecutionContext()
"""In force where none is active: the CPU, float32, kernels by rank."""


class _Active(threading.local):
    context = DEFAULT


_active = _Active()


def active_context() -> ExecutionContext:
    """The context of the innermost active block of this thread, or DEFAULT."""
    return _active.context


@contextmanager
def running_in(context: ExecutionContext) -> Iterator[None]:
    """Within the block `context` is the active one, where it is not: a backward pass runs on threads of its own."""
    if active_context() is context:
        yield
        return
    with context.activate():
        yield
