"""Imported models give transformers' logits, and what cannot be imported is refused by name."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError
from synthe_core.events import Notice, Progress, Result, Saved
from synthe_core.interop.converted import ConvertedTensors
from synthe_core.interop.importer import import_hf
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.models import VOCAB, published, tokens, transformer

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 10_000.0, "factor": 4.0}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, all biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied, one key head each": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-3, "head_dim": 24}),
    "llama, linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama, YaRN": ("Llama", {"rope_parameters": YARN, "hidden_act": "gelu"}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral, window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2, windows above": (
        "Qwen2",
        {"layers": 3, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2, every other": (
        "Qwen2",
        {
            "layers": 4,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 12, "rms_norm_eps": 1e-3}),
    "qwen3, biases, tied": ("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
}


STATE_SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"state_size": 6}),
    "mamba, biases, untied": (
        "Mamba",
        {
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
            "time_step_rank": 5,
            "conv_kernel": 3,
            "expand": 3,
        },
    ),
    "mamba2": ("Mamba2", {"state_size": 10, "num_heads": 8, "head_dim": 16, "n_groups": 2}),
    "mamba2, biases, limits, tied": (
        "Mamba2",
        {
            "state_size": 16,
            "num_heads": 2,
            "head_dim": 32,
            "n_groups": 1,
            "expand": 1,
            "use_bias": True,
            "tie_word_embeddings": True,
            "time_step_limit": (0.05, 0.6),
            "layer_norm_epsilon": 1e-3,
        },
    ),
}


def imported(source: Path, **options: Any) -> Checkpoint:
    *_, last = import_hf(source, out=source.parent / "ours", **options)
    assert isinstance(last, Result) and last.path is not None
    return Checkpoint.open(last.path)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 0.5  # logits worth comparing
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def assert_same_logits(peer: Any, checkpoint: Checkpoint) -> None:
    """In one pass, and going on from a state: a prompt, an odd piece, and token by token."""
    model, text = checkpoint.model().eval(), tokens()
    expected = peer(text, use_cache=False).logits
    assert_same(model(text)[0], expected)
    state, pieces = None, []
    for piece in text.split([11, 4, *[1] * 22], dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    assert_same(torch.cat(pieces, 1), expected)


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers_have_the_same_logits(tmp_path: Path, case: str) -> None:
    kind, options = TRANSFORMERS[case]
    peer = transformer(tmp_path / "theirs", kind, **options)
    assert_same_logits(peer, imported(tmp_path / "theirs"))


@pytest.mark.parametrize("case", STATE_SPACES)
def test_state_spaces_have_the_same_logits(tmp_path: Path, case: str) -> None:
    kind, options = STATE_SPACES[case]
    peer = published(tmp_path / "theirs", kind, num_hidden_layers=2, **options)
    assert_same_logits(peer, imported(tmp_path / "theirs"))


def test_layers_of_two_kinds_become_the_fewest_kinds_of_block(tmp_path: Path) -> None:
    for case, windows in (("every other", ["full", 5]), ("windows above", ["full", 5, 5])):
        folder = tmp_path / case
        transformer(folder / "theirs", "Qwen2", **TRANSFORMERS[f"qwen2, {case}"][1])
        model = imported(folder / "theirs").recipe.model
        assert [kind[0].window for kind in model.kinds] == windows
        assert model.blocks == json.loads((folder / "theirs" / "config.json").read_text())["num_hidden_layers"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_widened_without_loss(tmp_path: Path, dtype: torch.dtype) -> None:
    peer = transformer(tmp_path / "theirs", dtype=dtype)
    checkpoint = imported(tmp_path / "theirs")
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.float32}
    assert_same_logits(peer, checkpoint)


def test_shards_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthe_core.interop.importer.SHARD_BYTES", 60_000)
    peer = transformer(tmp_path / "whole")
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    checkpoint = imported(tmp_path / "theirs")
    assert len(list(checkpoint.path.glob("model-*.safetensors"))) > 2
    assert_same_logits(peer, checkpoint)


def test_at_most_one_shard_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are read when they are written: never all of them at once."""
    transformer(tmp_path / "theirs", layers=6)
    monkeypatch.setattr("synthe_core.interop.importer.SHARD_BYTES", 60_000)
    resident, peak, original = 0, 0, ConvertedTensors.__getitem__

    def release(size: int) -> None:
        nonlocal resident
        resident -= size

    def counted(self: ConvertedTensors, name: str) -> torch.Tensor:
        nonlocal resident, peak
        tensor = original(self, name)
        resident += tensor.nbytes
        peak = max(peak, resident)
        weakref.finalize(tensor, release, tensor.nbytes)
        return tensor

    monkeypatch.setattr(ConvertedTensors, "__getitem__", counted)
    checkpoint = imported(tmp_path / "theirs")
    assert 0 < peak < 0.5 * sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def test_events_and_manifest_name_the_source(tmp_path: Path) -> None:
    source = tmp_path / "theirs"
    transformer(source, dtype=torch.bfloat16)
    events = list(import_hf(source, out=tmp_path / "ours", name="small"))
    assert [type(event) for event in events] == [Notice, Notice, Progress, Progress, Saved, Result]
    checkpoint = Checkpoint.open(tmp_path / "ours")
    assert checkpoint.recipe.name == "small" and checkpoint.vocab == VOCAB
    assert checkpoint.manifest.parents == [str(source)]
    facts = checkpoint.manifest.model_dump()["source"]
    assert len(facts.pop("digest")) == 64
    assert facts.pop("config")["architectures"] == ["LlamaForCausalLM"] and facts.pop("shapes")
    assert facts == {"format": "huggingface", "architecture": "LlamaForCausalLM", "stored": "BF16", "context": 2048}
    assert checkpoint.manifest.parameters == checkpoint.model().parameter_count()


def test_a_head_that_is_stored_but_tied(tmp_path: Path) -> None:
    """Equal to the embedding it is dropped; different, it is a head of its own, as transformers reads it."""
    peer = transformer(tmp_path / "equal", tie_word_embeddings=True)
    file = tmp_path / "equal" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    checkpoint = imported(tmp_path / "equal")
    assert checkpoint.recipe.model.tie and "head.weight" not in checkpoint.tensors
    assert_same_logits(peer, checkpoint)

    peer = transformer(tmp_path / "two" / "theirs")
    edit(tmp_path / "two" / "theirs", tie_word_embeddings=True)
    checkpoint = imported(tmp_path / "two" / "theirs")
    assert not checkpoint.recipe.model.tie
    assert_same_logits(peer, checkpoint)


def test_the_older_config_format(tmp_path: Path) -> None:
    peer = transformer(tmp_path / "theirs", rope_parameters=LLAMA3)
    older = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")}
    edit(
        tmp_path / "theirs",
        rope_parameters=None,
        rope_theta=500_000.0,
        rope_scaling=older | {"type": "llama3"},
        head_dim=None,
    )
    file = tmp_path / "theirs" / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, file)
    assert_same_logits(peer, imported(tmp_path / "theirs"))


def edit(folder: Path, **keys: Any) -> None:
    """Changes keys of a config.json; None takes one out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"architectures": ["LamaForCausalLM"]}, "unknown architecture 'LamaForCausalLM'", "'LlamaForCausalLM'"),
        ({"architectures": None}, "names no architecture", "LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', and should be a list", "again"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'", "silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "None"),
        ({"rope_parameters": PROPORTIONAL}, "rope_type is 'proportional'", "default, linear, llama3, yarn"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_parameters.rope_theta is 'big'", "again"),
        ({"rope_parameters": LLAMA3 | {"factor": None}}, "rope_parameters.factor is missing", "again"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": 9.0}}, "low 9.0 must be below high 4.0", ""),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5", "1"),
        ({"hidden_size": None}, "hidden_size is missing", "again"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2.input_layernorm.weight", "every file"),
        ({"num_hidden_layers": 1}, "has a tensor model.layers.1.", "another architecture"),
        ({"intermediate_size": 111}, "model.layers.0.mlp.gate_proj.weight [112, 64]", "two models"),
        ({"vocab_size": VOCAB + 1}, "model.embed_tokens.weight [97, 64]", "two models"),
        ({"num_key_value_heads": 3}, "heads 4 is not divisible by kv_heads 3", "kv_heads"),
        ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias", "every file"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_settings_are_refused_by_name(tmp_path: Path, keys: Any, message: str, hint: str) -> None:
    transformer(tmp_path / "theirs")
    edit(tmp_path / "theirs", **keys)
    with pytest.raises(InputError) as caught:
        imported(tmp_path / "theirs")
    assert message in caught.value.message and hint in (caught.value.hint or "")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types is ['full_attention'], and should be a list of 2"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is 'sliding_attention'"),
        ({"use_sliding_window": 1}, "use_sliding_window is 1, and should be true or false"),
        ({"use_sliding_window": True, "max_window_layers": "0", "sliding_window": 9}, "max_window_layers is '0'"),
    ],
)
def test_unsupported_windows(tmp_path: Path, keys: Any, message: str) -> None:
    transformer(tmp_path / "theirs", "Qwen2")
    edit(tmp_path / "theirs", **keys)
    with pytest.raises(InputError) as caught:
        imported(tmp_path / "theirs")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_heads": 7}, "num_heads is 7"),
        ({"time_step_limit": 3}, "time_step_limit is 3, and should be a list of 2"),
        ({"time_step_limit": [1.0, 0.5]}, "time_step_limit must rise"),
        ({"n_groups": 3}, "8 heads do not split into 3 groups"),
        ({"state_size": 11}, "mixer.in_proj.weight [304, 64]"),
        ({"conv_kernel": 99}, "model.block.0.conv: "),
    ],
)
def test_unsupported_state_spaces(tmp_path: Path, keys: Any, message: str) -> None:
    published(tmp_path / "theirs", "Mamba2", num_hidden_layers=1, **STATE_SPACES["mamba2"][1])
    edit(tmp_path / "theirs", **keys)
    with pytest.raises(InputError) as caught:
        imported(tmp_path / "theirs")
    assert message in caught.value.message


def test_incomplete_folders(tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            imported(folder)
        return caught.value.message

    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is a file" in refused(tmp_path / "file")
    source = tmp_path / "theirs"
    source.mkdir()
    assert "has no config.json" in refused(source)
    (source / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(source)
    transformer(source)
    (source / "model.safetensors").rename(tmp_path / "kept")
    assert "has neither model.safetensors nor" in refused(source)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "as pickle (pytorch_model.bin)" in refused(source)
    (source / "model.safetensors").write_bytes((tmp_path / "kept").read_bytes()[:-100])
    assert "model.safetensors is damaged" in refused(source)
    (source / "model.safetensors").unlink()
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert "model-00001-of-00001.safetensors is missing" in refused(source)
    index.write_text(json.dumps({"weight_map": {"a": "../kept"}}))
    assert "names ../kept" in refused(source)
    save_file({"b": torch.ones(2)}, source / "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert "has no tensor a" in refused(source)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    transformer(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"layers.1.mlp.down_proj.weight is stored as I8"):
        imported(tmp_path / "theirs")


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    transformer(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine").write_text("precious")
    with pytest.raises(InputError, match="is not empty"):
        imported(tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["mine"]


def test_an_invalid_name(tmp_path: Path) -> None:
    published(
        tmp_path / "theirs", "Llama", num_attention_heads=2, num_hidden_layers=1, intermediate_size=32, head_dim=32
    )
    with pytest.raises(InputError, match="name: "):
        imported(tmp_path / "theirs", name="a b")
