"""Matrices that stay quantised: every way to read them gives the same numbers, and those of the paper's code."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import nn

from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.quantization import nf4
from synthe_core.quantization.codes import decode, encode
from synthe_core.quantization.formats import FORMATS
from synthe_core.quantization.ggml import BLOCK_FORMATS
from synthe_core.quantization.ggml_quantize import quantize as quantize_blocks
from synthe_core.quantization.matrix import (
    CHUNK,
    BlockMatrix,
    FloatMatrix,
    QuantizedMatrix,
    StackedMatrix,
    quantized_bytes,
    quantized_size,
)
from synthe_core.quantization.quantize import AS_STORED, MEMORY_FORMATS, check_format, quantize

SHAPES = [(5, 128), (3, 33), (4, 255), (70, 64)]


def numbers(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices(shape: tuple[int, int]) -> dict[str, QuantizedMatrix]:
    weight = numbers(shape)
    made = {name: quantize(weight, name) for name in MEMORY_FORMATS}
    made |= {"double": quantize(weight, "nf4", double_quant=True), "bfloat16": FloatMatrix(weight.bfloat16())}
    if shape[1] % 32 == 0:
        blocks = quantize_blocks(weight, 8).view(shape[0], -1)
        made["Q8_0"] = BlockMatrix(BLOCK_FORMATS[8], blocks)
        made["stacked"] = StackedMatrix([made["Q8_0"], made["int4"], made["bfloat16"]])
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    for name, matrix in matrices(shape).items():
        whole = matrix.dequantize()
        assert whole.shape == matrix.shape and whole.dtype == torch.float32, name
        count = matrix.shape[0]
        index = torch.tensor([count - 1, 0, count // 2, 0])
        assert torch.equal(matrix.rows(index), whole[index]), name
        for part in (slice(1, count), slice(None), slice(0, 1)):
            assert torch.equal(matrix.rows(part), whole[part]), name


def test_parts_cover_the_selected_rows_once() -> None:
    matrix = FloatMatrix(torch.zeros(7, CHUNK // 3))
    assert [part.stop - part.start for part in matrix.parts()] == [3, 3, 1]
    assert list(matrix.parts(slice(2, 6))) == [slice(2, 5), slice(5, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_codes_are_those_of_files(shape: tuple[int, int], name: str) -> None:
    weight = numbers(shape)
    expected = decode(*encode(weight, FORMATS[name]), FORMATS[name], shape[1])
    assert torch.equal(quantize(weight, name).dequantize(), expected)


def test_nf4_has_the_quantiles_of_a_normal_distribution() -> None:
    """Equation 4 of the paper, with its offset; both halves end at a magnitude of 1."""
    offset = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2

    def quantiles(count: int) -> torch.Tensor:
        return torch.special.ndtri(torch.linspace(offset, 0.5, count, dtype=torch.float64)[:-1])

    values = torch.cat([quantiles(9), torch.zeros(1, dtype=torch.float64), -quantiles(8)]).sort().values
    torch.testing.assert_close(
        torch.tensor(nf4.TABLE, dtype=torch.float64), values / values.max(), rtol=1e-5, atol=1e-6
    )


def test_nf4_takes_the_nearest_of_its_values() -> None:
    weight = numbers((6, 192))
    back = quantize(weight, "nf4").dequantize()
    groups = weight.view(6, 3, 64)
    magnitude = groups.abs().amax(-1, keepdim=True)
    distance = (groups[..., None] / magnitude[..., None] - torch.tensor(nf4.TABLE)).abs()
    nearest = torch.tensor(nf4.TABLE)[distance.argmin(-1)] * magnitude
    torch.testing.assert_close(back, nearest.view(6, 192), rtol=1e-6, atol=1e-7)


def test_numbers_of_the_table_come_back_exactly() -> None:
    weight = torch.tensor(nf4.TABLE).repeat(3, 8) * torch.tensor([[0.5], [2.0], [8.0]])
    assert torch.equal(quantize(weight, "nf4").dequantize(), weight)


def test_double_quantisation_saves_memory_for_little_error() -> None:
    weight = numbers((512, 256))
    plain, double = quantize(weight, "nf4"), quantize(weight, "nf4", double_quant=True)
    assert plain.nbytes * 8 / weight.numel() == 4.5
    assert double.nbytes * 8 / weight.numel() == pytest.approx(4.127, abs=1e-3)
    one, two = (float((each.dequantize() - weight).square().mean()) for each in (plain, double))
    assert two == pytest.approx(one, rel=0.01)


def test_asymmetric_codes_repeat_the_numbers_of_q4_1() -> None:
    """As the groups are the same; to the rounding of a float16."""
    form = BLOCK_FORMATS[3]
    codes = torch.randint(256, (64 * 4, form.nbytes), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codes[:, :4] = torch.tensor([0.01, -0.07]).half().view(torch.uint8)
    codes[:, 4] = 0xF0  # every group has both ends
    weight = form.dequantize(codes, (64, 128))
    error = (quantize(weight, "int4_asymmetric").dequantize() - weight).abs().max()
    assert float(error) < 0.01 * 0.01
    assert float((quantize(weight, "int4").dequantize() - weight).abs().max()) > 0.1 * 0.01


@pytest.mark.parametrize("name", MEMORY_FORMATS)
def test_zeros_stay_zeros(name: str) -> None:
    assert torch.equal(quantize(torch.zeros(4, 96), name).dequantize(), torch.zeros(4, 96))


def test_a_module_moves_and_keeps_its_types() -> None:
    module = nn.Module()
    module.matrix = quantize(numbers((8, 64)), "int4")
    before = module.matrix.dequantize()
    assert not module.state_dict() and quantized_size(module) == 512 and quantized_bytes(module) == 8 * 36
    module.to(torch.bfloat16).to(torch.float64)
    assert torch.equal(module.matrix.dequantize(), before)
    assert module.to("meta").matrix.device.type == "meta"


def test_sizes_follow_from_shapes() -> None:
    """So that memory is predicted without numbers."""
    for name in MEMORY_FORMATS:
        weight = numbers((96, 160))
        assert quantize(weight.to("meta"), name).nbytes == quantize(weight, name).nbytes
    assert quantize(weight.to("meta"), "nf4", double_quant=True).nbytes == (
        quantize(weight, "nf4", double_quant=True).nbytes
    )


def test_an_unknown_format_has_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown format of quantised weights 'nf5'") as error:
        quantize(torch.zeros(4, 64), "nf5")
    assert "nf4" in error.value.hint
    assert check_format(AS_STORED) == AS_STORED


def test_a_recipe_names_every_format() -> None:
    choices = typing.get_args(typing.get_args(LoraSpec.model_fields["quantize"].annotation)[0])
    assert set(choices) == {*MEMORY_FORMATS, AS_STORED}
