"""The layout for products by integers: the numbers of the matrix that it was made from, however its rows are read."""

from __future__ import annotations

import pytest
import torch

from synthe_core.quantization.ggml import BLOCK_FORMATS
from synthe_core.quantization.matrix import CHUNK, BlockMatrix, FloatMatrix, QuantizedMatrix, StackedMatrix
from synthe_core.quantization.packed import NIBBLES, PackedMatrix, has_products, is_packable, packed
from synthe_core.quantization.quantize import quantize

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "int8", "int4", "int4_asymmetric")
"""Their scales have no more digits than float16."""
FROM_PRODUCTS = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""Their scales are products, which float16 rounds."""


def numbers(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)) * scale


def quantized(name: str, rows: int, columns: int, scale: float = 1.0) -> QuantizedMatrix:
    if name in ("int8", "int4", "int4_asymmetric", "nf4"):
        return quantize(numbers(rows, columns, scale), name)
    number = next(key for key, form in BLOCK_FORMATS.items() if form.name == name)
    form = BLOCK_FORMATS[number]
    generator = torch.Generator().manual_seed(rows)
    blocks = torch.randint(256, (rows, columns // form.size, form.nbytes), generator=generator, dtype=torch.uint8)
    halves = {"Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82)}.get(name, (0,))
    for at in (*halves, *((2,) if name in ("Q4_1", "Q5_1") else ())):  # float16 numbers of a usual size
        values = (torch.rand(rows, columns // form.size, generator=generator) * scale).half()
        blocks[..., at : at + 2] = values[..., None].view(torch.uint8)
    return BlockMatrix(form, blocks.flatten(1))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("rows", [1, 8, 21])
def test_the_numbers_are_those_of_the_matrix(name: str, rows: int) -> None:
    for columns in (96, 40) if name.startswith("int") else (96,):
        matrix = quantized(name, rows, columns)
        made = packed(matrix)
        assert isinstance(made, PackedMatrix) and made.format == name and made.bits == (4 if name in NIBBLES else 8)
        assert torch.equal(made.dequantize(), matrix.dequantize())


def test_zeros_have_the_signs_that_the_file_has() -> None:
    """A session's fingerprint reads bytes. llama.cpp writes negative scales for Q4_0."""
    blocks = torch.full((3, 2, 18), 0x88, dtype=torch.uint8)  # codes of zero
    blocks[..., :2] = torch.tensor([-0.5], dtype=torch.float16).view(torch.uint8)
    matrix = BlockMatrix(next(form for form in BLOCK_FORMATS.values() if form.name == "Q4_0"), blocks.flatten(1))
    whole = matrix.dequantize()
    assert whole.signbit().all() and torch.equal(packed(matrix).dequantize().view(torch.int32), whole.view(torch.int32))


@pytest.mark.parametrize("name", FROM_PRODUCTS)
def test_scales_that_are_products_are_rounded_to_float16(name: str) -> None:
    matrix = quantized(name, 9, 512)
    made = packed(matrix)
    assert isinstance(made, PackedMatrix)
    whole = matrix.dequantize()
    size = whole.view(9, -1, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(9, -1)
    assert ((made.dequantize() - whole).abs() <= 2**-9 * size).all()  # offset and scale each err by 2^-11 of theirs


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e3])
def test_scales_of_any_size_stay_as_they_are(scale: float) -> None:
    matrix = quantized("int4", 5, 64, scale)
    assert torch.equal(packed(matrix).dequantize(), matrix.dequantize())


def test_a_matrix_of_zeros() -> None:
    for name in ("int8", "int4", "int4_asymmetric"):
        made = packed(quantize(torch.zeros(3, 64), name))
        assert isinstance(made, PackedMatrix) and not made.dequantize().any()


def test_rows_by_slice_and_by_index() -> None:
    made = packed(quantized("int4", 21, 96))
    whole = made.dequantize()
    index = torch.tensor([20, 0, 7, 8, 7])
    assert torch.equal(made.rows(index), whole[index])
    for part in (slice(3, 19), slice(None), slice(20, 21), slice(-2, None)):
        assert torch.equal(made.rows(part), whole[part])


def test_a_large_matrix_is_packed_in_parts() -> None:
    columns = CHUNK // 12
    columns -= columns % 32
    matrix = quantized("int8", 29, columns)
    assert len(list(matrix.parts(multiple=8))) > 1
    assert torch.equal(packed(matrix).dequantize(), matrix.dequantize())


def test_formats_without_the_layout_stay_as_they_are() -> None:
    for matrix in (FloatMatrix(torch.ones(4, 32)), quantized("nf4", 4, 64), quantized("Q2_K", 4, 256)):
        assert packed(matrix) is matrix and not is_packable(matrix) and not has_products(matrix)


def test_stacks_are_packed_one_by_one() -> None:
    stack = StackedMatrix([quantized("Q8_0", 5, 64), quantized("Q4_0", 11, 64)])
    made = packed(stack)
    assert is_packable(stack) and has_products(made) and torch.equal(made.dequantize(), stack.dequantize())
    mixed = StackedMatrix([quantized("Q8_0", 5, 64), FloatMatrix(torch.ones(3, 64))])
    assert is_packable(mixed) and not has_products(packed(mixed))
