"""GGUF files in a merge: as the checkpoints that they are imported to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.events import Result
from synthe_core.interop.gguf.exporter import export_gguf
from synthe_core.interop.importer import import_gguf
from synthe_core.merging.difference import diff
from synthe_core.merging.extract import extract_lora
from synthe_core.storage import checkpoint as checkpoints
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.manifest import Manifest
from tests.evaluation.models import saved
from tests.merging.models import moved, result

BLOCK = [
    {"type": "attention", "heads": 4, "kv_heads": 2, "head_size": 8, "qk_norm": False},
    {"type": "mlp", "hidden": 64},
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two GGUF files of one shape, the second quantised."""
    first = Checkpoint.open(saved(tmp_path / "model", BLOCK, embed_norm=False))
    made = []
    for seed, kind in enumerate(("f32", "q8_0")):
        tensors = moved({name: first.tensors[name] for name in first.tensors}, seed, 0.05)
        checkpoints.save(
            tmp_path / f"model{seed}",
            recipe=first.recipe,
            vocab=first.vocab,
            tensors=tensors,
            manifest=Manifest(),
            tokenizer=first.tokenizer(),
        )
        made.append(tmp_path / f"{seed}.gguf")
        list(export_gguf(tmp_path / f"model{seed}", out=made[-1], quantize=kind))
    return made[0], made[1]


def imported(path: Path) -> Path:
    out = path.with_suffix("")
    list(import_gguf(path, out=out))
    return out


def test_a_merge_of_gguf_files_is_that_of_their_imports(tmp_path: Path, files: tuple[Path, Path]) -> None:
    one, other = files
    ours = result(tmp_path / "out", "linear", [one, other])
    expected = result(tmp_path / "expected", "linear", [imported(one), imported(other)])
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    merged = Checkpoint.open(tmp_path / "out")
    assert merged.tokenizer().encode("the sea") == Checkpoint.open(one).tokenizer().encode("the sea")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        merged.model()(ids)
    mixed = result(tmp_path / "mixed", "linear", [one, tmp_path / "1"])
    assert all(torch.equal(mixed[name], expected[name]) for name in mixed)


def test_difference_and_adapter_of_gguf_files(tmp_path: Path, files: tuple[Path, Path]) -> None:
    one, other = map(str, files)
    *_, compared = diff(one, other)
    assert isinstance(compared, Result) and compared.values["only"] == []
    list(extract_lora(one, other, rank=32, out=tmp_path / "lora", rest=True))
    back = result(tmp_path / "back", "linear", [f"{one}+{tmp_path / 'lora'}"])
    target = Checkpoint.open(Path(other)).tensors
    assert all((back[name] - target[name]).abs().max() < 1e-4 for name in back)


def test_a_damaged_file_is_one_line(tmp_path: Path, files: tuple[Path, Path]) -> None:
    one, other = files
    other.write_bytes(other.read_bytes()[:-4000])
    with pytest.raises(InputError, match=r"1\.gguf"):
        result(tmp_path / "out", "linear", [one, other])
    assert not (tmp_path / "out").exists()
