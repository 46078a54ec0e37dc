"""Batch-invariant kernels give a row the same bits alone and beside any others; nothing of torch is replaced for it."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.inference.scheduler_config import ALIGNMENT
from synthe_core.layers import LAYERS
from synthe_core.layers.learner import Learner
from synthe_core.ops import activations, scaled_dot_product_attention  # noqa: F401  (they register themselves)
from synthe_core.ops.dispatch import OPS, PRIMITIVES, Call, Op
from synthe_core.ops.linear import products_are_batch_invariant
from tests.laws.entries import CASES, CAUSAL, case_name, inputs, make, run
from tests.paths import ROOT

for _name in LAYERS:  # importing a learner imports its operators
    LAYERS[_name]

ROWS = 13  # no other size in the learners' settings
INVARIANT = ExecutionContext(batch_invariant=True)
SUBSETS = (slice(5, 6), slice(0, 2), slice(3, 8))


@functools.cache
def calls(past: int, time: int) -> list[tuple[Op, str, dict[str, Any]]]:
    """The calls of operators by every learner in a pass of ROWS rows of `time` tokens that follow `past` tokens."""
    recorded: list[tuple[Op, str, dict[str, Any]]] = []
    original = Op.__call__
    for case in CASES:
        learner = make(case).float()

        def recording(self: Op, *args: Any, name: str = case_name(case), **kwargs: Any) -> Any:
            named = dict(zip(self._parameters, args, strict=False)) | kwargs
            copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in named.items()}
            recorded.append((self, name, copies))
            return original(self, *args, **kwargs)

        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            state = run(learner, inputs(ROWS, past, seed=9).float())[1] if past else None
            patch.setattr(Op, "__call__", recording)
            run(learner, inputs(ROWS, time).float(), state, start=past)
    return [each for each in recorded if by_row(each[0], each[2])]


def by_row(op: Op, arguments: dict[str, Any]) -> bool:
    """Whether the arguments have a row of the pass in each place of their first axis."""
    first = next(value for value in arguments.values() if isinstance(value, Tensor))
    return len(first) == ROWS or op.name == "probed_attention"


def implementations(op: Op, call: Call) -> Iterator[tuple[str, Any]]:
    """The batch-invariant ones of an operator that can serve a call on a CPU."""
    if "cpu" in op.batch_invariant:
        yield "reference", op.reference
    for kernel in op.kernels:
        if "cpu" in kernel.batch_invariant and kernel.refusal(probe(), call) is None:
            yield kernel.name, kernel


def rows_of(op: Op, arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The arguments of some rows; what all rows share stays."""
    part = {
        key: value[rows].clone() if isinstance(value, Tensor) and value.dim() and len(value) == ROWS else value
        for key, value in arguments.items()
    }
    if op.name == "probed_attention":  # its queries are those of the selected tokens, row by row
        counts = arguments["selected"].sum(1).tolist()
        part["q"] = arguments["q"][sum(counts[: rows.start]) : sum(counts[: rows.stop])].clone()
    return part


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [leaf for part in result if part is not None for leaf in leaves(part)]


@pytest.mark.parametrize(("past", "time"), [(0, 1), (5, 1), (0, 9), (5, 71)])
def test_a_row_has_the_same_bits_alone_and_in_company(past: int, time: int) -> None:
    if not products_are_batch_invariant():
        pytest.skip("products of this processor depend on their rows even in fours")
    compared = set()
    for op, label, arguments in calls(past, time):
        for name, kernel in implementations(op, Call.of(arguments)):
            with torch.no_grad(), INVARIANT.activate():
                together = leaves(kernel(**arguments))
                for rows in SUBSETS:
                    alone = leaves(kernel(**rows_of(op, arguments, rows)))
                    for one, all_ in zip(alone, together, strict=True):
                        expected = all_[rows] if op.name != "probed_attention" else queries(arguments, all_, rows)
                        assert torch.equal(one, expected), f"{op.name}/{name} for {label}, {past} + {time}, {rows}"
            compared.add((op.name, name))
    assert len(compared) > 20


def queries(arguments: dict[str, Any], out: Tensor, rows: slice) -> Tensor:
    counts = arguments["selected"].sum(1).tolist()
    return out[sum(counts[: rows.start]) : sum(counts[: rows.stop])]


def primitive_arguments(name: str, rows: int) -> dict[str, Any]:
    """A call of a primitive with `rows` rows, the first of which are those of every call with more."""
    torch.manual_seed(0)
    if name == "linear":
        return {"x": torch.randn(ROWS, 37)[:rows].clone(), "weight": torch.randn(11, 37), "bias": torch.randn(11)}
    if name == "addmm":
        y, x = torch.randn(ROWS, 11)[:rows].clone(), torch.randn(ROWS, 5)[:rows].clone()
        return {"y": y, "x": x, "weight": torch.randn(5, 11), "alpha": 0.5}
    if name == "grouped_mm":  # the last rows are of the second group
        x, weight = torch.randn(ROWS, 12)[:rows].clone(), torch.randn(2, 16, 12).transpose(1, 2)
        return {"x": x, "weight": weight, "offs": torch.tensor([min(rows, 5), rows], dtype=torch.int32)}
    if name == "block_linear":  # 5 blocks
        x, weight = torch.randn(ROWS, 5, 7)[:rows].clone(), torch.randn(5, 11, 7)
        return {"x": x, "weight": weight, "bias": torch.randn(5, 11)}
    if name == "scaled_dot_product_attention":
        q, k, v = (torch.randn(ROWS, 3, time, 16)[:rows].clone() for time in (1, 201, 201))
        return {"q": q, "k": k, "v": v, "attn_mask": torch.ones(rows, 1, 1, 201, dtype=torch.bool)}
    return {"x": torch.randn(ROWS, 3, 37)[:rows].clone()}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_too(name: str) -> None:
    if not products_are_batch_invariant():
        pytest.skip("products of this processor depend on their rows even in fours")
    kernels = [kernel for kernel in PRIMITIVES[name].kernels if "cpu" in kernel.batch_invariant]
    assert kernels
    for kernel in kernels:
        together = kernel(**primitive_arguments(name, ROWS))
        for rows in range(1, ROWS):
            assert torch.equal(kernel(**primitive_arguments(name, rows)), together[:rows]), (
                f"{kernel.name}, {rows} rows"
            )


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_kernel_of_a_primitive_equals_its_reference(name: str) -> None:
    arguments = primitive_arguments(name, ROWS)
    keywords = {key: arguments.pop(key) for key in ("offs", "alpha") if key in arguments}
    expected = PRIMITIVES[name].reference(*arguments.values(), **keywords)
    for kernel in PRIMITIVES[name].kernels:
        torch.testing.assert_close(kernel(*arguments.values(), **keywords), expected, rtol=1e-5, atol=1e-5)


def test_nothing_of_torch_is_replaced() -> None:
    """No module assigns an attribute of torch, of its modules or of Tensor."""
    roots = {"torch", "F", "Tensor", "nn"}
    for path in (ROOT / "synthe_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[Any] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
                targets = [node.target]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
                targets = [ast.Attribute(value=node.args[0])]
            for target in targets:
                while isinstance(target, ast.Attribute):
                    target = target.value
                    assert not (isinstance(target, ast.Name) and target.id in roots), f"{path}:{node.lineno}"


def test_an_operator_without_such_a_kernel_refuses_in_words() -> None:
    hidden, weight, targets = torch.ones(1, 2, 4), torch.ones(8, 4), torch.zeros(1, 2, dtype=torch.int64)
    with INVARIANT.activate(), pytest.raises(InputError, match="linear_cross_entropy on cpu is batch-invariant"):
        OPS["linear_cross_entropy"](hidden, weight, targets)
    forced = ExecutionContext(batch_invariant=True, kernels={"linear": "torch"})
    with forced.activate(), pytest.raises(InputError, match="linear on cpu is batch-invariant"):
        PRIMITIVES["linear"](hidden, weight)


@pytest.mark.parametrize("case", CAUSAL, ids=case_name)
def test_a_text_may_be_cut_where_a_learner_says(case: dict[str, Any]) -> None:
    learner, x = make(case).float(), inputs(2, 300).float()
    if None in (alignments := [each.alignment for each in learner.modules() if isinstance(each, Learner)]):
        pytest.skip("no cut gives the same bits")
    alignment = math.lcm(ALIGNMENT, *alignments)
    with torch.inference_mode(), INVARIANT.activate():
        whole = run(learner, x)[0]
        for cut in range(alignment, 300, 5 * alignment):
            first, state, _ = run(learner, x[:, :cut])
            rest = run(learner, x[:, cut:], state, cut)[0]
            assert torch.equal(torch.cat([first, rest], 1), whole), cut
