"""Products of packed matrices: the definition's numbers, row by row the same in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.hardware.probe import probe
from synthe_core.ops import native
from synthe_core.ops.packed_linear import SOURCE, packed_linear, reference, unavailable
from synthe_core.ops.quantized_linear import quantized_linear
from synthe_core.quantization.matrix import StackedMatrix
from synthe_core.quantization.packed import packed
from tests.processes import run_program
from tests.quantization.test_packed import quantized

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))

NAMES = ("Q4_0", "Q4_1", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "Q3_K", "int8", "int4", "int4_asymmetric")
SHAPES = [(1, 256), (8, 512), (37, 256)]


def inputs(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * 3


def close(y: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max() + 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(name: str, shape: tuple[int, int]) -> None:
    matrix = packed(quantized(name, *shape))
    x = inputs(7, shape[1])
    close(packed_linear(x, matrix), reference(x, matrix))


@pytest.mark.parametrize("name", ["int8", "int4", "int4_asymmetric"])
@pytest.mark.parametrize("columns", [32, 33, 100, 161])
def test_columns_that_fill_no_block(name: str, columns: int) -> None:
    matrix = packed(quantized(name, 13, columns))
    x = inputs(5, columns)
    close(packed_linear(x, matrix), reference(x, matrix))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    matrix = packed(quantized(name, 45, 256))
    x = inputs(19, 256)
    whole = packed_linear(x, matrix)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 12, 18):
        assert torch.equal(packed_linear(x[:count], matrix), whole[:count])
        assert torch.equal(packed_linear(x[-count:], matrix), whole[-count:])


def test_threads_change_nothing() -> None:
    matrix = packed(quantized("int4_asymmetric", 3000, 256))
    x, threads = inputs(11, 256), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(packed_linear(x, matrix))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("outputs", [slice(0, 8), slice(3, 30), slice(8, 37), slice(16, 17), slice(None)])
def test_some_outputs(outputs: slice) -> None:
    for matrix in (
        packed(quantized("Q4_1", 37, 64)),
        packed(StackedMatrix([quantized("Q8_0", n, 64) for n in (5, 32)])),
    ):
        x = inputs(3, 64)
        assert torch.equal(packed_linear(x, matrix, outputs), packed_linear(x, matrix)[:, outputs])


def test_shapes_and_types_of_x() -> None:
    matrix = packed(quantized("int8", 10, 64))
    x = inputs(6, 64)
    y = packed_linear(x, matrix)
    assert torch.equal(packed_linear(x.view(2, 3, 64), matrix), y.view(2, 3, 10))
    assert torch.equal(packed_linear(x.t().contiguous().t(), matrix), y)
    assert packed_linear(x[:0], matrix).shape == (0, 10)
    half = x.bfloat16()
    assert torch.equal(packed_linear(half, matrix), packed_linear(half.float(), matrix))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_its_row(value: float) -> None:
    matrix = packed(quantized("Q4_0", 9, 64))
    x = inputs(5, 64)
    clean = packed_linear(x, matrix)
    x[2, 40] = value
    y = packed_linear(x, matrix)
    assert not y[2].isfinite().any()
    assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-37, 1e30])
def test_rows_of_any_size(size: float) -> None:
    """Numbers below 1.5e-36 count as zeros."""
    matrix = packed(quantized("int8", 9, 64))
    x = inputs(3, 64) * size
    y, expected = packed_linear(x, matrix).double(), reference(x, matrix)
    assert y.isfinite().all()
    torch.testing.assert_close(y, expected, rtol=0, atol=max(1e-34, 2e-6 * float(expected.abs().max())))


def test_products_by_integers_are_those_without_a_gradient() -> None:
    """With one, the matrix is dequantised: what is differentiated is then the linear map itself."""
    matrix = packed(quantized("int4", 12, 64))
    x, bias = inputs(4, 64), torch.arange(12.0)
    assert torch.equal(quantized_linear(x, matrix, bias), packed_linear(x, matrix) + bias)
    x.requires_grad_()
    y = quantized_linear(x, matrix, bias)
    torch.testing.assert_close(y, x @ matrix.dequantize().T + bias)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, matrix.dequantize().sum(0).expand(4, -1))
    with torch.no_grad():
        assert torch.equal(quantized_linear(x, matrix), packed_linear(x.detach(), matrix))


def test_plain_c_has_the_numbers_of_vector_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor without AVX2 computes."""
    compiler = probe().compiler
    assert compiler is not None
    library = tmp_path / "plain.so"
    source = Path(native.__file__).parent / SOURCE
    flags = ["-O2", "-std=c11", "-ffp-contract=off", "-U__AVX2__", "-shared", "-fPIC"]
    run_program([compiler, *flags, str(source), "-o", str(library), "-lm"], check=True, capture_output=True)
    made = [(packed(quantized(name, 21, 256)), inputs(6, 256)) for name in NAMES]
    expected = [packed_linear(x, matrix) for matrix, x in made]
    monkeypatch.setattr("synthe_core.ops.packed_linear.library", lambda source: native._load(library))
    for (matrix, x), y in zip(made, expected, strict=True):
        assert torch.equal(packed_linear(x, matrix), y)
