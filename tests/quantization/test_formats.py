"""Codes and scales: exact for numbers on the grid, within half a step elsewhere; metadata are checked."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError
from synthe_core.quantization.codes import decode, encode
from synthe_core.quantization.formats import FORMATS, quantizable
from synthe_core.quantization.tensor_file import METADATA_KEY, DequantizedTensors, open_tensors, write_quantized
from synthe_core.storage.tensor_file import ALIGN, TensorFile


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(5, 128), (3, 33), (2, 3, 100), (1, 129), (4, 255)])
def test_every_number_is_within_half_a_step(format, shape):
    chosen = FORMATS[format]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scale = encode(weight, chosen)
    back = decode(codes, scale, chosen, shape[-1])
    step = scale.float().repeat_interleave(chosen.group, -1)[..., : shape[-1]]
    reach = torch.where(back.abs() >= step * chosen.high * 0.999, step * chosen.high * 0.35, step * 0.5)
    assert back.shape == weight.shape and bool(((back - weight).abs() <= reach * 1.01 + 1e-9).all())


@pytest.mark.parametrize(("format", "low", "high"), [("int8", -127, 127), ("int4", -8, 7)])
def test_numbers_on_the_grid_come_back_exactly(format, low, high):
    codes = torch.randint(low, high + 1, (8, 96), generator=torch.Generator().manual_seed(1)).float()
    codes[:, ::32], codes[:, 1::32] = high, low  # every group reaches its ends
    weight = codes * 0.125
    back = decode(*encode(weight, FORMATS[format]), FORMATS[format], 96)
    assert torch.equal(back, weight)


def test_trying_scales_beats_reaching_the_largest():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    plain = FORMATS["int4"]._replace(scale_shares=(1.0,))
    errors = [float((decode(*encode(weight, k), k, 256) - weight).square().mean()) for k in (plain, FORMATS["int4"])]
    assert errors[1] < 0.9 * errors[0]


def test_zeros_and_tiny_numbers():
    weight = torch.zeros(2, 64)
    weight[1, :32] = 1e-30
    for format in FORMATS.values():
        back = decode(*encode(weight, format), format, 64)
        assert torch.equal(back[0], weight[0]) and bool(torch.isfinite(back).all())
        torch.testing.assert_close(back[1, :32], weight[1, :32], rtol=0.01, atol=0)


@pytest.fixture
def file(tmp_path):
    tensors = {
        "a.weight": torch.randn(64, 96),
        "norm": torch.randn(96),
        "experts": torch.randn(2, 40, 64),
        "narrow": torch.randn(2000, 4),
        "half": torch.randn(64, 64).bfloat16(),
        "count": torch.arange(7),
    }
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    matrices = write_quantized(tmp_path / "q.safetensors", tensors, shapes, "int4")
    return tmp_path / "q.safetensors", tensors, matrices


def test_a_file_of_codes_reads_as_numbers(file):
    path, tensors, matrices = file
    assert matrices == ["a.weight", "experts", "half"] and not quantizable(torch.float32, (2000, 4))
    opened = open_tensors(path)
    assert isinstance(opened, DequantizedTensors) and set(opened) == set(tensors) and len(opened) == 6
    for name, tensor in tensors.items():
        assert opened.shape(name) == tensor.shape == opened[name].shape
        if name not in matrices:
            assert torch.equal(opened[name], tensor)
        else:
            error = (opened[name] - tensor.float()).norm() / tensor.float().norm()
            assert 0.01 < error < 0.12
    raw = load_file(path)  # it is a safetensors file like any other
    assert raw["a.weight.codes"].dtype == torch.uint8 and raw["a.weight.codes"].shape == (64, 48)
    assert raw["a.weight.scale"].dtype == torch.bfloat16 and raw["a.weight.scale"].shape == (64, 3)
    assert TensorFile(path).data % ALIGN == 0


def test_the_same_weights_give_the_same_bytes(file, tmp_path):
    path, tensors, _ = file
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_quantized(tmp_path / "again.safetensors", tensors, shapes, "int4")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_is_not_finite_is_refused(tmp_path):
    bad = {"w": torch.randn(64, 64)}
    bad["w"][3, 3] = torch.inf
    with pytest.raises(InputError, match="w has values that are not finite"):
        write_quantized(tmp_path / "x", bad, {"w": (torch.float32, (64, 64))}, "int8")


@pytest.mark.parametrize(
    "about",
    [
        "no json",
        "[]",
        json.dumps({"w": ["int8", [64, 64]]}),
        json.dumps({"w": ["int4", [64, 10**15]]}),
        json.dumps({"w": ["int3", [64, 64]]}),
        json.dumps({"w": ["int4"]}),
        json.dumps({"w": ["int4", []]}),
        json.dumps({"w": ["int4", ["a", "b"]]}),
        json.dumps({"other": ["int4", [64, 64]]}),
        "[" * 100_000,
    ],
)
def test_descriptions_that_lie(tmp_path, about):
    codes, scale = encode(torch.randn(64, 64), FORMATS["int4"])
    save_file({"w.codes": codes, "w.scale": scale}, tmp_path / "x", metadata={METADATA_KEY: about})
    with pytest.raises(InputError, match="do not match its codes"):
        open_tensors(tmp_path / "x")
