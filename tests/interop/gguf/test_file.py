"""Reading GGUF files: values and tensors as written, and one line for whatever violates the format."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.writer import PlannedTensor, write_gguf

VALUES: dict[str, Any] = {
    "general.architecture": "llama",
    "text": "日本 \n",
    "flag": True,
    "whole": 7,
    "number": 0.5,
    "names": ["a", "", "é"],
    "numbers": [1, -2, 3],
    "scores": [0.5, -1.0],
    "none": [],
}


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"one": torch.randn(3, 32), "two": torch.randn(5), "three": torch.randn(2, 64)}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    kinds = {"one": 0, "two": 0, "three": 8}
    planned = {
        name: PlannedTensor(tuple(tensor.shape), kinds[name], lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in tensors().items()
    }
    write_gguf(tmp_path / "a.gguf", VALUES, planned)
    return tmp_path / "a.gguf"


def test_values_and_tensors_are_those_that_were_written(written: Path) -> None:
    file = GgufFile(written)
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in file.metadata.items()}
    assert plain == VALUES and list(file) == list(tensors())
    for name, tensor in tensors().items():
        assert file.shape(name) == tuple(tensor.shape)
    assert file["one"].equal(tensors()["one"]) and file["two"].equal(tensors()["two"])
    torch.testing.assert_close(file["three"], tensors()["three"], rtol=0, atol=0.02)


def test_the_gguf_package_reads_the_same(written: Path) -> None:
    gguf = pytest.importorskip("gguf")
    there = gguf.GGUFReader(written)
    values = {key: field.contents() for key, field in there.fields.items() if not key.startswith("GGUF.")}
    assert values == VALUES
    assert {each.name: tuple(each.data.shape) for each in there.tensors}["two"] == (5,)


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def info(name: bytes, shape: tuple[int, ...], kind: int = 0, start: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


KEY = text(b"k")
HUGE = 2**63
FAULTS: dict[str, bytes] = {
    "nothing": b"",
    "another file": b"PK\x03\x04" + bytes(99),
    "magic only": b"GGUF",
    "version 1": header(version=1),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors without end": header(tensors=HUGE),
    "values without end": header(values=HUGE),
    "more tensors than bytes": header(tensors=1000),
    "a key that is too long": header(values=1) + text(b"k", HUGE),
    "a key past the end": header(values=1) + text(b"k", 60_000),
    "a text past the end": header(values=1) + KEY + struct.pack("<IQ", 8, HUGE),
    "an unknown type": header(values=1) + KEY + struct.pack("<I", 99),
    "a list without end": header(values=1) + KEY + struct.pack("<IIQ", 9, 0, HUGE),
    "a list of texts without end": header(values=1) + KEY + struct.pack("<IIQ", 9, 8, HUGE),
    "a list of lists": header(values=1) + KEY + struct.pack("<IIQ", 9, 9, 1) + bytes(64),
    "a key twice": header(values=2) + (KEY + struct.pack("<IB", 0, 1)) * 2,
    "five dimensions": header(tensors=1) + info(b"t", (1, 1, 1, 1, 1)) + bytes(99),
    "no numbers": header(tensors=1) + info(b"t", (0,)) + bytes(99),
    "a shape that overflows": header(tensors=1) + info(b"t", (2**62, 2**62)) + bytes(99),
    "a tensor past the end": header(tensors=1) + info(b"t", (100,)) + bytes(99),
    "a place past the end": header(tensors=1) + info(b"t", (4,), start=2**62) + bytes(99),
    "a place between": header(tensors=1) + info(b"t", (4,), start=7) + bytes(99),
    "rows that no block divides": header(tensors=1) + info(b"t", (33,), kind=8) + bytes(99),
    "a kind that nobody reads": header(tensors=1) + info(b"t", (256,), kind=16) + bytes(99),
    "a tensor twice": header(tensors=2) + info(b"t", (4,)) * 2 + bytes(99),
    "tensors that overlap": header(tensors=2) + info(b"t", (16,)) + info(b"u", (16,), start=32) + bytes(256),
    "an alignment of 3": header(values=1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
    "an alignment of 0": header(values=1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
    "an alignment that is a text": header(values=1) + text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_takes_no_memory(tmp_path: Path, fault: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(FAULTS[fault])
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            GgufFile(tmp_path / "bad.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def damaged(content: bytes, rng: random.Random) -> bytes:
    kinds: list[Callable[[bytearray], None]] = [
        lambda data: data.__delitem__(slice(rng.randrange(len(data)), None)),
        lambda data: data.__setitem__(rng.randrange(len(data)), rng.randrange(256)),
        lambda data: data.__setitem__(slice(at := rng.randrange(len(data) - 8), at + 8), b"\xff" * 8),
        lambda data: data.__delitem__(rng.randrange(len(data))),
        lambda data: data.insert(rng.randrange(len(data)), rng.randrange(256)),
    ]
    data = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        if len(data) > 16:
            rng.choice(kinds)(data)
    return bytes(data)


def test_no_damage_is_more_than_one_line(written: Path, tmp_path: Path) -> None:
    rng, content, refused = random.Random(0), written.read_bytes(), 0
    for _ in range(2000):
        (tmp_path / "bad.gguf").write_bytes(damaged(content, rng))
        try:
            file = GgufFile(tmp_path / "bad.gguf")
            for name in file:
                assert file[name].shape == torch.Size(file.shape(name))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 500
