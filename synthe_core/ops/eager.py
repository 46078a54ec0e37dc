"""Functions that `torch.compile` calls as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import ParamSpec, TypeVar

import torch

try:
    from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy, set_eval_frame
except ImportError:  # a torch that has them elsewhere
    set_eval_frame = None  # type: ignore[assignment]

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which is not traced, and neither is what it calls: a graph of `torch.compile` ends before it.

    As `torch.compiler.disable`, which imports all of torch's compiler: 0.6 s that a program without it need not wait.
    """
    if set_eval_frame is None:
        return torch.compiler.disable(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        before = set_eval_frame(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_eval_frame(before)

    code: CodeType = call.__code__  # type: ignore[attr-defined]
    set_code_exec_strategy(code, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))
    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # read where a call is traced
    return call
