"""Exported GGUF files: read back by us, by the gguf package and by transformers, with the same logits and token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.events import Result
from synthe_core.interop.gguf.exporter import TYPES, export_gguf
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import DELTA, saved

gguf = pytest.importorskip("gguf")
MLP = {"type": "mlp", "hidden": 64}


def attention(**options: Any) -> list[Any]:
    return [{"type": "attention", "heads": 4, "kv_heads": 2, "head_size": 8, "qk_norm": False} | options, MLP]


LLAMA3 = {"type": "llama3", "context": 8192, "factor": 8.0, "low": 1.0, "high": 4.0}
MODELS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "llama": ("llama", attention(), {"embed_norm": False}),
    "llama, untied": ("llama", attention(rope=5e4), {"tie": False}),
    "llama, its third scaling": ("llama", attention(rope=5e5, rope_scaling=LLAMA3), {}),
    "llama, linear scaling": ("llama", attention(rope_scaling={"type": "linear", "factor": 4.0}), {}),
    "mistral": ("llama", attention(window=7), {"tie": False}),
    "llama, biases": ("llama", [attention(bias="all")[0], MLP | {"bias": True}], {}),
    "qwen2": ("qwen2", attention(bias="qkv"), {}),
    "qwen3": ("qwen3", attention(qk_norm="weighted", head_size=128), {}),
    "mamba": ("mamba", ["mamba"], {}),
    "mamba, biases": ("mamba", [{"type": "mamba", "conv_bias": False, "state_size": 6}], {"tie": False}),
    "mamba2": ("mamba2", [{"type": "mamba2", "head_size": 16, "groups": 2}], {"norm_eps": 1e-5}),
}
BY_TRANSFORMERS = ("llama", "llama, untied", "qwen2", "qwen3", "mamba")


def exported(source: Path, out: Path, **options: Any) -> Path:
    *_, last = export_gguf(source, out=out, **options)
    assert isinstance(last, Result) and last.path == out
    return out


def text_of(model: Any) -> torch.Tensor:
    return torch.randint(0, model.vocab, (2, 37), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", MODELS)
def test_logits_survive_a_round_trip(tmp_path: Path, case: str) -> None:
    architecture, block, model = MODELS[case]
    source = Checkpoint.open(saved(tmp_path / "ours", block, **model))
    file = exported(source.path, tmp_path / "model.gguf", quantize="f32")
    there = gguf.GGUFReader(file)
    assert there.fields["general.architecture"].contents() == architecture
    back = Checkpoint.open(file)
    ours, theirs = source.model().eval(), back.model().eval()
    with torch.no_grad():
        expected = ours(text_of(ours))[0]
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(theirs(text_of(ours))[0], expected, rtol=0, atol=1e-4)
    assert back.tokenizer().encode("the sea, 12 Müller") == source.tokenizer().encode("the sea, 12 Müller")
    assert back.tokenizer().end == source.tokenizer().end


@pytest.mark.parametrize("case", BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    _, block, model = MODELS[case]
    source = Checkpoint.open(saved(tmp_path / "ours", block, **model))
    exported(source.path, tmp_path / "model.gguf", quantize="f32")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = source.model().eval()
    with torch.no_grad():
        expected = ours(text_of(ours))[0]
        torch.testing.assert_close(peer.eval()(text_of(ours), use_cache=False).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantize", TYPES)
def test_every_type_is_what_the_gguf_package_reads(tmp_path: Path, quantize: str) -> None:
    block = [{"type": "attention", "heads": 4, "head_size": 64, "qk_norm": False}, {"type": "mlp", "hidden": 256}]
    path = saved(tmp_path / "ours", block, width=256, embed_norm=False)
    file = exported(path, tmp_path / "model.gguf", quantize=quantize)
    ours = Checkpoint.open(file).source.model.published  # type: ignore[attr-defined]
    there = {each.name: each for each in gguf.GGUFReader(file).tensors}
    assert set(ours.file) == set(there)
    for name, each in there.items():
        values = gguf.quants.dequantize(each.data, each.tensor_type)
        assert torch.from_numpy(values.copy()).view(ours.file.shape(name)).equal(ours.file[name].float()), name
    kinds = {name: each.tensor_type.name for name, each in there.items()}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    if quantize == "q4_k_m":
        assert kinds["blk.0.attn_q.weight"] == "Q4_K" and kinds["token_embd.weight"] == "Q6_K"


def test_rows_that_no_block_divides_get_a_larger_type(tmp_path: Path) -> None:
    file = exported(saved(tmp_path / "ours", attention(), width=32), tmp_path / "model.gguf", quantize="q4_k_m")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"


@pytest.mark.parametrize("block", [DELTA, attention(bias="out")], ids=["delta", "biases"])
def test_what_no_file_computes_is_refused(tmp_path: Path, block: list[Any]) -> None:
    with pytest.raises(InputError, match="architecture computes this model"):
        list(export_gguf(saved(tmp_path / "ours", block), out=tmp_path / "model.gguf"))
    assert not (tmp_path / "model.gguf").exists()


def test_a_file_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        list(export_gguf(saved(tmp_path / "ours", attention()), out=tmp_path / "model.gguf"))
    assert (tmp_path / "model.gguf").read_bytes() == b"precious"


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="q8"):
        list(export_gguf(saved(tmp_path / "ours", attention()), out=tmp_path / "m.gguf", quantize="q8"))
