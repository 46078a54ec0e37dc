"""`eager`: functions that `torch.compile` leaves alone."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from synthe_core.ops.eager import eager
from tests.paths import ROOT
from tests.processes import run_program

traced: list[bool] = []


def inner(x: Tensor) -> Tensor:
    traced.append(torch.compiler.is_compiling())
    return x * 2


@eager
def doubled(x: Tensor, more: float = 0.0) -> Tensor:
    """Twice x."""
    return inner(x) + more


def whole(x: Tensor) -> Tensor:
    return doubled(x.sin(), more=1.0).cos()


def test_it_is_the_function_itself() -> None:
    x = torch.randn(3)
    assert torch.equal(doubled(x, more=0.5), 2 * x + 0.5)
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice x.")


def test_a_compiled_caller_calls_it_as_it_is() -> None:
    from torch._dynamo.testing import CompileCounter

    counter, x = CompileCounter(), torch.randn(3, requires_grad=True)
    traced.clear()
    compiled = torch.compile(whole, backend=counter)
    torch.testing.assert_close(compiled(x), whole(x))
    compiled(x).sum().backward()
    assert counter.frame_count == 2  # before and after it: nothing within is a graph of its own
    assert traced and not any(traced)


def test_an_error_leaves_the_compiler_as_it_was() -> None:
    @eager
    def fails(x: Tensor) -> Tensor:
        raise ValueError("no")

    before = get_eval_frame_callback()
    with pytest.raises(ValueError, match="no"):
        fails(torch.ones(1))
    assert get_eval_frame_callback() is before


def test_no_operator_or_learner_imports_the_compiler() -> None:
    program = (
        "import sys, synthe_core.layers, synthe_core.model.language_model, synthe_core.inference.offline\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    run_program([sys.executable, "-c", program], cwd=ROOT, check=True)
