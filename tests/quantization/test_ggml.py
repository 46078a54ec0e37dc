"""Every block format of GGUF files, bit by bit beside the gguf package's own."""

from __future__ import annotations

import pytest
import torch

from synthe_core.quantization.ggml import BLOCK_FORMATS, BlockFormat

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
