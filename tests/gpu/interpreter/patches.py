"""What Triton's interpreter lacks for our kernels and fla's. Importing this module mends it, in this process.

Seven gaps of 3.9.0: autotuning wants a driver to time with; loop variables are ints, and tensors when compiled; aliases
of builtins (`gather = tl.gather`) are not patched; masks must be bool; bfloat16 is held as uint16 and computed as such,
by operations and by reductions; scans of a kernel's own function go element by element in Python.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.autotuner as autotuner
import triton.runtime.interpreter as interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


class LoopIndex(int):
    """A loop variable, which kernels may convert as the tensor that it is when compiled."""

    def to(self, dtype: Any, **_: Any) -> LoopIndex:
        return self


def _loop_arithmetic(name: str) -> Any:
    plain = getattr(int, name)

    def operate(self: LoopIndex, other: Any) -> Any:
        result = plain(self, other)
        return LoopIndex(result) if isinstance(result, int) and not isinstance(result, bool) else result

    return operate


def loop_range(*arguments: Any) -> Iterator[LoopIndex]:
    return (LoopIndex(i) for i in builtins.range(*(int(argument) for argument in arguments)))


def mend_autotuner() -> None:
    """The first configuration is taken: there is nothing to time."""
    autotuner.Autotuner._bench = lambda self, *args, config, **meta: [0.0, 0.0, 0.0]


def mend_names() -> None:
    """While a kernel runs, `range` and aliases of `tl.gather` in its module are the interpreter's."""
    for operation in ("add", "sub", "mul", "floordiv", "mod", "radd", "rsub", "rmul"):
        setattr(LoopIndex, f"__{operation}__", _loop_arithmetic(f"__{operation}__"))
    gather, run = tl.gather, interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = self.fn.__globals__
        new = {name: lambda src, index, axis: tl.gather(src, index, axis) for name, x in scope.items() if x is gather}
        new["range"] = loop_range
        before = {name: scope[name] for name in new if name in scope}
        scope.update(new)
        try:
            return run(self, *args, **kwargs)
        finally:
            for name in new:
                if name in before:
                    scope[name] = before[name]
                else:
                    del scope[name]

    interpreter.GridExecutor.__call__ = call


def widened(x: Any) -> Any:
    """bfloat16 as float32, exactly."""
    if not isinstance(x, Handle) or x.dtype.scalar != tl.bfloat16:
        return x
    return Handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounded(x: np.ndarray) -> Any:
    """float32 as the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return Handle(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), tl.bfloat16)


def mend_bfloat16() -> None:
    """Operations compute in float32, and round where the result is bfloat16."""

    def lifted(name: str) -> Any:
        plain = getattr(Builder, name)

        def operate(self: Any, *args: Any) -> Any:
            wide = [widened(x) for x in args]
            if all(x is y for x, y in zip(wide, args, strict=True)):
                return plain(self, *args)
            result = plain(self, *wide)
            return rounded(result.data) if result.dtype.scalar == tl.float32 else result

        return operate

    for name in ("binary_op", "unary_op", "ternary_op", "create_fma", "create_fabs"):
        setattr(Builder, name, lifted(name))
    dot, cast = Builder.create_dot, Builder.cast_impl
    Builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    Builder.cast_impl = lambda self, x, to: (
        rounded(x.data) if x.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16 else cast(self, x, to)
    )
    for operator in (interpreter.ReduceOps, interpreter.ScanOps):

        def apply(self: Any, input: Any, plain: Any = operator.apply_impl) -> Any:
            wide = any(x.dtype.scalar == tl.bfloat16 for x in input)
            return plain(self, tuple(x.to(tl.float32) for x in input) if wide else input)

        operator.apply_impl = apply


def mend_masks() -> None:
    load, store = Builder.create_masked_load, Builder.create_masked_store

    def as_bool(mask: Any) -> Any:
        return mask if mask.data.dtype == np.bool_ else Handle(mask.data.astype(np.bool_), tl.int1)

    Builder.create_masked_load = lambda self, ptr, mask, *rest: load(self, ptr, as_bool(mask), *rest)
    Builder.create_masked_store = lambda self, ptr, x, mask, *rest: store(self, ptr, x, as_bool(mask), *rest)


def mend_scans() -> None:
    """A scan's function is applied to whole slices, as it is made of elementwise operations."""

    def scan(self: Any, input: Any) -> list[Any]:
        data = [x.handle.data for x in input]
        out = [np.empty_like(x) for x in data]
        state = None
        for i in range(data[0].shape[self.axis]):
            at = (slice(None),) * self.axis + (i,)
            item = tuple(self.to_tensor(x[at], one.dtype) for x, one in zip(data, input, strict=True))
            if state is not None:
                item = self.combine_fn.fn(*state, *item)
                item = item if isinstance(item, tuple) else (item,)
            for target, value in zip(out, item, strict=True):
                target[at] = value.handle.data
            state = item
        return [self.to_tensor(x, one.dtype) for x, one in zip(out, input, strict=True)]

    interpreter.ScanOps.generic_scan = scan


for mend in (mend_autotuner, mend_names, mend_bfloat16, mend_masks, mend_scans):
    mend()
