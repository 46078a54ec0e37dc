"""Hashes that are computed while tensors are read, in any order and by several threads; memory that is used again."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from synthe_core.merging import buffers, hashed_file
from synthe_core.merging.buffers import Buffers
from synthe_core.merging.hashed_file import HashedFile
from synthe_core.merging.methods.linear import linear


@pytest.fixture
def tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensor]]:
    """A file whose tensors are of several pieces, or of none."""
    monkeypatch.setattr(hashed_file, "CHUNK", 64)
    made = {f"t{number}": torch.randn(number * 13 % 50, 3) for number in range(20)}
    save_file(made, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors", made


@pytest.mark.parametrize("order", ["file", "reversed", "shuffled", "some"])
def test_the_digest_is_the_files_whatever_the_order_of_reading(
    tensors: tuple[Path, dict[str, Tensor]], order: str
) -> None:
    path, made = tensors
    file = HashedFile(path)
    names = sorted(made, key=file.offset)
    if order == "reversed":
        names.reverse()
    elif order == "shuffled":
        random.Random(0).shuffle(names)
    elif order == "some":
        names = names[3:5]
    for name in names:
        assert torch.equal(file.read(name), made[name])
    digest = file.digest()
    assert digest is not None and digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest.bytes == path.stat().st_size


def test_several_threads_read_and_hash(tensors: tuple[Path, dict[str, Tensor]]) -> None:
    path, made = tensors
    for _ in range(10):
        file = HashedFile(path)
        with ThreadPoolExecutor(4) as pool:
            for name, tensor in zip(made, pool.map(file.read, made), strict=True):
                assert torch.equal(tensor, made[name])
        digest = file.digest()
        assert digest is not None and digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_memory_goes_from_a_tensor_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LEAST", 8)
    pool = Buffers()
    with pool.in_use():
        first = pool.empty(100)
        address, view = first.data_ptr(), first[:4].fill_(7)
        del first
        other = pool.empty(100)
        assert other.data_ptr() != address, "a view is still there"
        assert view.tolist() == [7] * 4
        del view
        second = pool.empty(90)
        assert second.data_ptr() == address, "a little less fits"
        assert pool.empty(30).data_ptr() != address
        like = pool.empty_like(torch.zeros(5, 7, dtype=torch.float64))
        assert like.shape == (5, 7) and like.dtype == torch.float64 and like.is_contiguous()
        third = pool.empty(100)
    del second, third, like, other
    assert not pool._free, "nothing waits after its use"
    assert pool.empty(100).numel() == 100


def test_no_more_than_the_limit_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LEAST", 8)
    monkeypatch.setattr(buffers, "LIMIT", 250)
    pool = Buffers()
    with pool.in_use():
        held = [pool.empty(100) for _ in range(4)]
        del held
        assert len(pool._free) == 2


def test_a_method_leaves_its_models_as_they_are() -> None:
    models = [torch.ones(3, 4), torch.full((3, 4), 3.0)]
    assert torch.equal(linear(models), torch.full((3, 4), 2.0))
    assert torch.equal(models[0], torch.ones(3, 4))
