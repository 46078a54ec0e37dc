"""Every architecture that is read is written: the tensors of a file that follows llama.cpp's conventions come back to
the bit, and the file that we write has the names, shapes, values and metadata of that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.interop.gguf.export_families import DESCRIPTIONS
from synthe_core.interop.gguf.exporter import TYPES, export_gguf
from synthe_core.interop.gguf.families import ARCHITECTURES
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.outline import Outline, difference
from synthe_core.interop.huggingface.families.plan import origin
from synthe_core.interop.published_parts import published_parts
from synthe_core.storage.checkpoint import Checkpoint

pytest.importorskip("transformers")
pytest.importorskip("gguf")
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.interop.gguf import test_exporter, test_families, test_hybrid_families
from tests.interop.gguf.families import TOKENS, random

CASES: dict[str, Any] = test_families.CASES | test_hybrid_families.CASES
UNUSED = {
    "attention.sliding_window", "rope.freq_base", "expert_count", "expert_used_count", "feed_forward_length",
    "expert_shared_feed_forward_length", "rope.scaling.original_context_length",
}  # fmt: skip
"""Metadata that nothing reads in some of these models: a window of 0, the base of angles that no layer has, no experts,
and the width of a dense MLP where all layers have experts."""


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.model().eval()(TOKENS[:, : checkpoint.context])[0]


def missing_biases(tensors: Any) -> set[str]:
    """Of convolutions: llama.cpp computes none without a bias."""
    biases = {name.replace("weight", "bias") for name in tensors if name.endswith("conv1d.weight")}
    return biases - set(tensors)


def test_a_refusal_says_what_the_own_architecture_lacks(tmp_path: Path) -> None:
    """llama.cpp computes Gemma 3 with one scale of the scores."""
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=100,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    with pytest.raises(InputError, match=r"gemma3: attention\.scale is 0\.1, and "):
        list(export_gguf(tmp_path / "gemma", out=tmp_path / "gemma.gguf"))


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_read_is_written_again(tmp_path: Path, case: str) -> None:
    _, path = CASES[case](tmp_path / "model.gguf")
    out = tmp_path / "again.gguf"
    *_, last = export_gguf(path, out=out, quantize="f32")
    source, back, before, after = Checkpoint.open(path), Checkpoint.open(out), GgufFile(path), GgufFile(out)
    architecture = last.values["architecture"]
    assert architecture == before.metadata["general.architecture"]
    assert difference(Outline(source.model(), 0), Outline(back.model(), 0)) is None
    for name, tensor in back.tensors.items():
        expected = source.tensors[name] if name in source.tensors else torch.zeros_like(tensor)
        assert tensor.equal(expected), name
    assert back.tensors.keys() - source.tensors.keys() == missing_biases(source.tensors)
    torch.testing.assert_close(logits(back), logits(source), rtol=0, atol=1e-5 if "longrope" in case else 0)
    assert {name for name in after if not name.endswith("conv1d.bias")} <= set(before) <= set(after)
    for name in before:
        if name != "rope_factors_long.weight":  # a model has one list of factors, that for short texts
            values, written = before[name].float(), after[name].float()
            torch.testing.assert_close(written, values.view(written.shape), rtol=2e-7, atol=0)
    for key, value in before.metadata.items():
        written, bare = after.metadata.get(key), key.removeprefix(f"{architecture}.")
        if bare == "rope.dimension_sections":
            assert sum(written) == after.metadata[f"{architecture}.rope.dimension_count"] // 2
        elif isinstance(value, np.ndarray):
            assert list(value) == list(written), key
        elif case == "phi3, longrope" and bare == "context_length":
            assert written == source.context  # beyond it angles are others, of which a model has none
        elif written is None or value != pytest.approx(written):
            assert bare in UNUSED, key


def test_every_architecture_that_is_read_is_among_them() -> None:
    cases = {name.split(",")[0] for name in CASES} - {"olmo3"}  # a kind of olmo2
    written = set(ARCHITECTURES) - {"rwkv7"}  # its embeddings are behind a norm, which ours have in them
    assert cases | {architecture for architecture, *_ in test_exporter.MODELS.values()} == written
    assert set(DESCRIPTIONS) == written


def test_multipliers_become_part_of_the_weights(tmp_path: Path) -> None:
    """Those of a Falcon-H1 that is no GGUF file."""
    model = random(
        "FalconH1", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=16, head_dim=16,
        mamba_norm_before_gate=False, attention_in_multiplier=1.5, attention_out_multiplier=0.75, key_multiplier=0.5,
        embedding_multiplier=2.0, lm_head_multiplier=0.25, ssm_in_multiplier=1.25, ssm_out_multiplier=0.5,
        mlp_multipliers=[0.5, 1.5], ssm_multipliers=[0.5, 0.75, 1.25, 1.5, 2.0], mamba_chunk_size=16,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    *_, last = export_gguf(tmp_path / "theirs", out=tmp_path / "model.gguf", quantize="f32")
    assert last.values["architecture"] == "falcon-h1"
    back = Checkpoint.open(tmp_path / "model.gguf")
    with torch.no_grad():
        expected = model(TOKENS).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantize", TYPES)
@pytest.mark.parametrize("case", ["qwen3moe", "gemma3", "nemotron_h", "qwen35", "lfm2"])
def test_types_of_a_family(tmp_path: Path, case: str, quantize: str) -> None:
    """Widths that no block of 256 divides get Q8_0; what is multiplied number by number stays float32."""
    gguf = pytest.importorskip("gguf")
    _, path = CASES[case](tmp_path / "model.gguf")
    list(export_gguf(path, out=tmp_path / "again.gguf", quantize=quantize))
    there = {each.name: each for each in gguf.GGUFReader(tmp_path / "again.gguf").tensors}
    ours = GgufFile(tmp_path / "again.gguf")
    for name, each in there.items():
        values = torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).copy())
        assert values.view(ours.shape(name)).equal(ours[name].float()), name
        if name.endswith(("_norm.weight", "ssm_a", "conv1d.weight", "gate_inp.weight", "shortconv.conv.weight")):
            assert each.tensor_type.name == "F32", name
    expected = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q4_0": "Q4_0"}.get(quantize, "Q8_0")
    assert there["token_embd.weight"].tensor_type.name == expected
    distance = logits(Checkpoint.open(tmp_path / "again.gguf")) - logits(Checkpoint.open(path))
    bound = {"f32": 0.0, "f16": 0.01, "bf16": 0.1, "q8_0": 0.25, "q4_k_m": 0.25, "q4_0": 1.0}[quantize]
    assert float(distance.std() / logits(Checkpoint.open(path)).std()) <= bound


def test_what_computes_is_not_taken_for_a_change_of_order() -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        published_parts(origin("w", make=lambda w: w + 1), torch.ones(3))
    (back,) = published_parts(origin("w", make=lambda w: w.flip(0)), torch.arange(3.0))
    assert back.tolist() == [2, 1, 0]
