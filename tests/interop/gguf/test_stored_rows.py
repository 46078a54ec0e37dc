"""Matrices in memory as a file stores them: the same numbers as those of its reader, in the bytes of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.interop.stored_rows import Stored, StoredRows, stored_matrix
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.quantized_model import quantizable_matrices
from synthe_core.model.without_storage import without_storage
from synthe_core.quantization.ggml import BLOCK_FORMATS
from synthe_core.quantization.ggml_quantize import quantize
from synthe_core.quantization.matrix import BlockMatrix, StackedMatrix
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.checkpoint.quantized import load_quantized
from tests.evaluation.models import saved
from tests.interop.gguf.test_exporter import exported
from tests.paths import SHARED

FILE = SHARED / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCK = [
    {"type": "attention", "heads": 4, "kv_heads": 2, "head_size": 64, "qk_norm": False},
    {"type": "mlp", "hidden": 256},
]


def loaded(checkpoint: Checkpoint, format: str = "as_stored") -> LanguageModel:
    with without_storage():
        model = build_model(checkpoint.recipe.model, checkpoint.vocab)
    assert isinstance(model, LanguageModel)
    load_quantized(model, checkpoint.tensors, checkpoint.path, format)
    return model


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k_m", "f16"])
def test_a_model_has_the_numbers_and_the_bytes_of_its_file(tmp_path: Path, kind: str, tie: bool) -> None:
    """Queries and keys, whose rows are in another order there, and maps that several of the file's make up."""
    source = saved(tmp_path / "ours", BLOCK, width=256, embed_norm=False, tie=tie)
    checkpoint = Checkpoint.open(exported(source, tmp_path / "model.gguf", quantize=kind))
    dense, model = checkpoint.model(), loaded(checkpoint)
    held = {name: module for name, module in model.named_modules() if hasattr(module, "matrix")}
    assert len(held) == len(quantizable_matrices(dense)) + tie
    for name, module in held.items():
        expected = dense.get_submodule(name).weight
        assert torch.equal(module.matrix.dequantize(), expected), name
        assert module.matrix.nbytes < 0.6 * expected.nbytes, name
    tokens = torch.randint(model.vocab, (2, 19))
    with torch.no_grad():
        made, reference = model(tokens)[0], dense(tokens)[0]
        exact = dense.double()(tokens)[0]  # the two sum in different orders: neither may be further from it
    assert (made - exact).abs().max() <= 2 * (reference - exact).abs().max()
    formats = {module.matrix.format for module in held.values()}
    assert formats <= {"Q4_0", "Q8_0", "float16", "Q4_K", "Q6_K", "Q4_K, Q6_K", "F16"} and formats


def blocks(kind: int, rows: int, seed: int) -> StoredRows:
    values = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    return StoredRows(quantize(values, kind).view(rows, -1), BLOCK_FORMATS[kind])


def dense(part: StoredRows) -> torch.Tensor:
    assert part.form is not None
    return part.form.dequantize(part.data, part.shape)


def test_rows_of_several_formats_are_stacked() -> None:
    one, other = blocks(2, 6, 0), blocks(8, 4, 1)
    made = stored_matrix([Stored([one]), Stored([other])], torch.cat, True, lambda: torch.zeros(0))
    assert isinstance(made, StackedMatrix) and made.format == "Q4_0, Q8_0"
    assert torch.equal(made.dequantize(), torch.cat([dense(one), dense(other)]))


def test_reordered_rows_are_compared_with_the_values() -> None:
    part = blocks(8, 6, 0)
    whole = dense(part)

    def turned(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (2, 3)).transpose(0, 1).flatten(0, 1)

    made = stored_matrix([Stored([part], turned)], lambda parts: parts[0], True, lambda: turned(whole))
    assert isinstance(made, BlockMatrix) and torch.equal(made.dequantize(), turned(whole))
    assert stored_matrix([Stored([part], turned)], lambda parts: parts[0], True, lambda: whole) is None


@pytest.mark.parametrize("change", [lambda w: w.t(), lambda w: w * 2, lambda w: w.flip(1), lambda w: w[:, :32]])
def test_what_is_no_order_of_rows_is_stored_nowhere(change: object) -> None:
    part = blocks(8, 64, 0)
    assert callable(change)
    made = stored_matrix([Stored([part])], lambda parts: change(parts[0]), False, lambda: change(dense(part)))
    assert made is None


@pytest.mark.slow
@pytest.mark.skipif(not FILE.is_file(), reason="needs the shared models")
def test_smollm2_has_exactly_the_numbers_of_its_file() -> None:
    checkpoint = Checkpoint.open(FILE)
    model, file = loaded(checkpoint), FILE.stat().st_size
    held = {name: module.matrix for name, module in model.named_modules() if hasattr(module, "matrix")}
    assert {matrix.format for matrix in held.values()} == {"Q4_1", "Q8_0"}
    assert sum({id(matrix): matrix.nbytes for matrix in held.values()}.values()) < file
    for name, matrix in held.items():
        key = "embedding.weight" if name == "head" else f"{name}.weight"
        assert torch.equal(matrix.dequantize(), checkpoint.tensors[key]), name
    assert model.parameter_count() == 134_515_008
