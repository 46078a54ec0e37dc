"""Every block format of GGUF files, bit by bit beside the gguf package's own."""

from __future__ import annotations

import pytest
import torch

from synthe_core.quantization.ggml import BLOCK_FORMATS, BlockFormat
from synthe_core.quantization.ggml_quantize import QUANTIZERS, quantize

gguf = pytest.importorskip("gguf")


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=[each.name for each in BLOCK_FORMATS.values()])
def test_numbers_are_those_of_the_gguf_package(kind: int) -> None:
    form = BLOCK_FORMATS[kind]
    there = gguf.GGMLQuantizationType[form.name]
    assert there.value == kind and gguf.GGML_QUANT_SIZES[there] == (form.size, form.nbytes)
    data = torch.randint(256, (5, 3 * form.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(kind))
    expected = torch.from_numpy(gguf.quants.dequantize(data.numpy(), there).copy())
    got = form.dequantize(data, (5, 3 * form.size))
    assert got.view(torch.int32)[~got.isnan()].equal(expected.view(torch.int32)[~expected.isnan()])
    assert got.isnan().equal(expected.isnan())


def test_large_tensors_are_unpacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    form: BlockFormat = BLOCK_FORMATS[12]
    data = torch.randint(256, (7, 2 * form.nbytes), dtype=torch.uint8)
    data[:, 1] = data[:, 3] = data[:, 145] = data[:, 147] = 0  # small float16, no NaN
    whole = form.dequantize(data, (7, 512))
    monkeypatch.setattr("synthe_core.quantization.ggml.CHUNK", 3 * form.size)
    assert form.dequantize(data, (7, 512)).equal(whole)


def samples(size: int) -> torch.Tensor:
    """Rows of several sizes, some of them zero or constant."""
    torch.manual_seed(3)
    rows = torch.randn(40, size) * torch.logspace(-3, 2, 40)[:, None]
    rows[3], rows[5], rows[7] = 0.0, 1.5, -0.25
    rows[9] = rows[9].abs() + 1
    rows[11, 1:] = 0.0
    return rows


@pytest.mark.parametrize("kind", [2, 8], ids=["Q4_0", "Q8_0"])
def test_blocks_are_those_of_the_gguf_package(kind: int) -> None:
    rows = samples(BLOCK_FORMATS[kind].size)
    expected = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType(kind))
    assert quantize(rows, kind).equal(torch.from_numpy(expected.copy()))


@pytest.mark.parametrize(("kind", "bound"), [(2, 0.09), (12, 0.073), (14, 0.0185), (8, 0.0055)])
def test_the_error_of_normal_numbers(kind: int, bound: float) -> None:
    """Relative root mean square error."""
    form = BLOCK_FORMATS[kind]
    values = torch.randn(64, 4 * form.size, generator=torch.Generator().manual_seed(0))
    back = form.dequantize(quantize(values, kind), tuple(values.shape))
    assert float((back - values).norm() / values.norm()) < bound


@pytest.mark.parametrize("kind", QUANTIZERS, ids=[BLOCK_FORMATS[kind].name for kind in QUANTIZERS])
def test_zeros_stay_zeros_and_numbers_keep_their_size(kind: int) -> None:
    form = BLOCK_FORMATS[kind]
    rows = samples(form.size)
    back = form.dequantize(quantize(rows, kind), tuple(rows.shape))
    assert back.isfinite().all() and back[3].eq(0).all()
    assert ((back - rows).abs().amax(1) <= 0.2 * rows.abs().amax(1)).all()
