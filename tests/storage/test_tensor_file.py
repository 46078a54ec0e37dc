"""safetensors: read as the library reads them, and every lie of a header found before anything is mapped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError
from synthe_core.storage.tensor_file import DTYPES, MIN_MAPPED, TensorFile, save_tensors, write_tensors


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_it_reads_what_the_library_wrote(tmp_path):
    tensors = {name: torch.arange(24).to(dtype).view(2, 3, 4) for name, dtype in DTYPES.items()}
    tensors |= {"empty": torch.empty(0, 5), "scalar": torch.tensor(3.5), "large": torch.randn(MIN_MAPPED)}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "x")
    assert file.metadata == {"format": "pt"} and set(file) == set(tensors) and len(file) == len(tensors)
    for name, tensor in tensors.items():
        read = file[name]
        assert read.dtype == tensor.dtype and file.shape(name) == tensor.shape
        assert torch.equal(
            read.view(torch.uint8) if read.dim() else read, tensor.view(torch.uint8) if read.dim() else tensor
        )


def test_others_may_read_a_file_as_they_may_any_new_one(tmp_path):
    (tmp_path / "plain").touch()
    save_tensors({"a": torch.zeros(2)}, tmp_path / "x", {"format": "pt"})
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert TensorFile(tmp_path / "x").metadata == {"format": "pt"}


def test_the_library_reads_what_it_wrote(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7), "c": torch.empty(0), "d": torch.randn(2, 2).bfloat16()}
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_tensors(tmp_path / "x", shapes, tensors.items(), {"k": "v"})
    for loaded in (load_file(tmp_path / "x"), TensorFile(tmp_path / "x")):
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_stretch_of_a_larger_file(tmp_path):
    save_file({"a": torch.arange(40_000)}, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    for before in (0, 5, 64, 4096 * 3 + 1):  # at no multiple of anything, too
        (tmp_path / "y").write_bytes(b"?" * before + content + b"after")
        assert torch.equal(TensorFile(tmp_path / "y", before, len(content))["a"], torch.arange(40_000))


def test_writes_to_a_tensor_do_not_change_the_file(tmp_path):
    save_file({"large": torch.zeros(MIN_MAPPED)}, tmp_path / "x")
    TensorFile(tmp_path / "x")["large"].fill_(1)
    assert not TensorFile(tmp_path / "x")["large"].any()


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"{", 0, "not JSON"),
        (b"[]", 0, "not a table of tensors"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 50_000, 0, "not JSON"),
        (b'{"a":1,"a":2}', 0, "a name occurs twice"),
        ({"a": 1}, 0, "says no type"),
        ({"a": {**GOOD, "dtype": "F33"}}, 8, "has a type"),
        ({"a": {**GOOD, "dtype": ["F32"]}}, 8, "has a type"),
        ({"a": {**GOOD, "shape": [-2]}}, 8, "is not a list of sizes"),
        ({"a": {**GOOD, "shape": [2.0]}}, 8, "is not a list of sizes"),
        ({"a": {**GOOD, "shape": [True, 2]}}, 8, "is not a list of sizes"),
        ({"a": {**GOOD, "shape": [1 << 70]}}, 8, "is not a list of sizes"),
        ({"a": {**GOOD, "shape": [3]}}, 8, "takes 8 bytes"),
        ({"a": {**GOOD, "shape": [1 << 61, 1 << 61]}}, 8, "takes 8 bytes"),
        ({"a": {**GOOD, "shape": [1] * 40 + [2]}}, 8, "takes 8 bytes"),
        ({"a": {**GOOD, "data_offsets": [8, 0]}}, 8, "takes -8 bytes"),
        ({"a": {**GOOD, "data_offsets": [0]}}, 8, "says no type"),
        ({"a": GOOD}, 4, "describes 8 bytes of data, and there are 4"),
        ({"a": GOOD}, 9, "describes 8 bytes of data, and there are 9"),
        ({"a": GOOD, "b": GOOD}, 8, "tensors overlap at b"),
        ({"a": GOOD, "b": {**GOOD, "data_offsets": [12, 20]}}, 20, "leave a gap at b"),
        ({"__metadata__": {"a": 1}}, 0, "metadata are not texts"),
        ({"__metadata__": []}, 0, "metadata are not texts"),
    ],
)
def test_invalid_headers(tmp_path, header, size, message):
    with pytest.raises(InputError) as refused:
        TensorFile(write(tmp_path / "x", header, b"\0" * size))
    assert message in refused.value.message and str(tmp_path / "x") in refused.value.message


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1])
def test_invalid_lengths(tmp_path, length):
    with pytest.raises(InputError, match="is damaged"):
        TensorFile(write(tmp_path / "x", {"a": GOOD}, b"\0" * 8, length))


def test_short_or_missing_files(tmp_path):
    (tmp_path / "x").write_bytes(b"1234")
    with pytest.raises(InputError, match="too short"):
        TensorFile(tmp_path / "x")
    with pytest.raises(InputError, match="No such file"):
        TensorFile(tmp_path / "y")
    write(tmp_path / "z", {"a": GOOD}, b"\0" * 8)
    file = TensorFile(tmp_path / "z")
    (tmp_path / "z").write_bytes((tmp_path / "z").read_bytes()[:-4])
    with pytest.raises(InputError, match="become shorter"):
        file["a"]
