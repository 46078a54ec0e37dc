"""Damaged and unusual model folders: each gets one clear line, whichever library would run the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError
from synthe_core.introspection.report import introspect
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.run import recipe_from_checkpoint, train
from tests.interop.huggingface.backend_families import family
from tests.interop.huggingface.served_models import folder, gpt2

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface.families import ARCHITECTURES, plan  # noqa: E402
from synthe_core.interop.huggingface.published import Config  # noqa: E402
from synthe_core.interop.load import load_model  # noqa: E402

ONE = torch.ones(64)
TEXT = torch.tensor([[5, 9, 200, 31, 7, 7, 88, 2, 64, 150]])


def bitnet(path: Path) -> Path:
    """A model that transformers runs."""
    return folder(path, "BitNet", num_key_value_heads=2, intermediate_size=96, max_position_embeddings=64)


def edited(path: Path, **keys: Any) -> Path:
    """The folder with other values in config.json; None removes a key."""
    file = path / "config.json"
    values = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


def retyped(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Saves the folder's tensors, changed."""
    tensors = load_file(path / "model.safetensors")
    tensors |= change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("values", [{}, {"text_config": {"hidden_size": 8}}, {"vocab_size": "8"}, {"vocab_size": -1}])
def test_a_config_without_a_vocabulary_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    path = bitnet(tmp_path / "model")
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"vocab_size is .*and should be a whole number"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LlamaForCasualLM", "LlamaForCausalLM"),
        ("LamaForCausalLM", "LlamaForCausalLM"),
        ("Gemma3ForSequenceClassification", "Gemma3ForCausalLM"),
        ("BertForMaskedLM", None),
    ],
)
def test_only_a_similar_family_is_suggested(tmp_path: Path, name: str, near: str | None) -> None:
    with pytest.raises(InputError, match="unknown architecture") as caught:
        plan(Config(tmp_path / "config.json", {"architectures": [name]}))
    assert caught.value.hint is not None
    assert ("did you mean" in caught.value.hint) == (near is not None)
    assert near is None or (near in ARCHITECTURES and f"did you mean '{near}'?" in caught.value.hint)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([], "fetch the safetensors files as well"),
        (["model-00000"], "if model-00000.safetensors has all its weights, rename it to model.safetensors"),
        (["model-00000", "model-00001"], "fetch model.safetensors.index.json, which says what its 2 safetensors files"),
    ],
)
def test_weights_of_other_names_are_not_said_to_be_missing(tmp_path: Path, names: list[str], hint: str) -> None:
    folder(tmp_path, "Llama")
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    for name in names:
        (tmp_path / f"{name}.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="has neither") as caught:
        Checkpoint.open(tmp_path)
    assert hint in str(caught.value.hint)


def test_a_misspelt_model_type_is_named(tmp_path: Path) -> None:
    path = edited(bitnet(tmp_path / "model"), model_type="bitnett")
    with pytest.raises(InputError, match="no model_type 'bitnett'") as caught:
        load_model(path)
    assert "did you mean 'bitnet'?" in str(caught.value.hint)


@pytest.mark.parametrize("settings", [{"quant_method": "fp8"}, {"quant_method": "gptq", "bits": 4}, "fp8"])
def test_quantised_weights_are_refused_before_they_are_read(tmp_path: Path, settings: Any) -> None:
    path = edited(bitnet(tmp_path / "model"), quantization_config=settings)
    with pytest.raises(InputError, match="has quantised weights"):
        load_model(path)
    with pytest.raises(InputError, match="has quantised weights"), Checkpoint.open(path).recipe.meta_model(270):
        pass


def test_layers_that_the_config_does_not_count_are_refused(tmp_path: Path) -> None:
    """transformers leaves them out with a warning, and the model writes nonsense."""
    path = edited(bitnet(tmp_path / "model"), num_hidden_layers=1)
    with pytest.raises(InputError, match=r"has a tensor model\.layers\.1\..*, which the model has not"):
        load_model(path)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    path = bitnet(tmp_path / "model")
    with torch.inference_mode():
        expected = load_model(path).model(TEXT)[0]
    retyped(
        path, lambda tensors: {"model.layers.2.input_layernorm.weight": ONE, "model.layers.2.eh_proj.weight": 2 * ONE}
    )
    with torch.inference_mode():
        assert torch.equal(load_model(path).model(TEXT)[0], expected)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_integers_and_of_eight_bits_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    path = bitnet(tmp_path / "model")
    retyped(path, lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="is stored as"):
        Checkpoint.open(path)


def test_one_tensor_of_eight_bits_is_refused(tmp_path: Path) -> None:
    path, name = bitnet(tmp_path / "model"), "model.layers.0.mlp.up_proj.weight"
    retyped(path, lambda tensors: {name: tensors[name].to(torch.float8_e4m3fn)})
    with pytest.raises(InputError, match=f"{name} of .* is stored as F8_E4M3"):
        Checkpoint.open(path)


def test_weights_of_float64_run_in_float32(tmp_path: Path) -> None:
    path = bitnet(tmp_path / "model")
    with torch.inference_mode():
        expected = load_model(path).model(TEXT)[0]
    retyped(path, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    with torch.inference_mode():
        assert torch.equal(load_model(path).model(TEXT)[0], expected)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = bitnet(tmp_path / "model")
    retyped(path, lambda tensors: {"model.norm.weight": torch.ones(65)})
    with pytest.raises(InputError, match=r"has model\.norm\.weight \[65\], and .* should be \[64\]"):
        load_model(path)


def test_introspection_says_which_option_learners_lack(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is run by transformers: .*hidden_act is 'mish'") as caught:
        introspect(folder(tmp_path / "model", "Llama", hidden_act="mish"), "hello")
    assert "silu" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["Qwen3Next", "Mixtral"])
def test_a_number_of_experts_that_lies_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """Before their names are listed, which takes memory and time without end."""
    path = family(tmp_path / "model", kind)
    for key in ("num_experts", "num_local_experts"):
        edited(path, **{key: 10**9})
    with pytest.raises(InputError, match=r"experts is 1000000000, and the longest side of its tensors is"):
        Checkpoint.open(path)


@pytest.mark.parametrize("key", ["linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim"])
def test_a_width_that_no_tensor_has_is_refused(tmp_path: Path, key: str) -> None:
    path = edited(family(tmp_path / "model", "Qwen3Next"), **{key: 10**30})
    with pytest.raises(InputError, match=f"{key} is 1000000"):
        load_model(path)


def test_a_window_beyond_all_texts_is_refused(tmp_path: Path) -> None:
    path = edited(family(tmp_path / "model", "Gemma3"), sliding_window=10**30)
    with pytest.raises(InputError, match="window must be below 2147483648"):
        load_model(path)


def test_a_tokenizer_that_ends_texts_with_a_token_beyond_the_model_trains_nothing(tmp_path: Path) -> None:
    """GPT-2's config of old names the end of text 50256, whatever the vocabulary."""
    path, text = gpt2(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("the sea the sea times is times " * 80)
    settings = [f"data.sources={text}", "data.sequence=16", "train.budget=1steps", "train.batch=2"]
    with pytest.raises(InputError, match=r"the tokenizer of .* has 271 tokens, and the model has 270"):
        list(train(recipe_from_checkpoint(path, settings), out=tmp_path / "run", init=path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "model.safetensors-00001-of-00001.safetensors"])
def test_weights_under_either_name_of_a_shard_are_packed(tmp_path: Path, name: str) -> None:
    path = bitnet(tmp_path / "model")
    (path / "model.safetensors").rename(path / name)
    index = {"weight_map": dict.fromkeys(load_file(path / name), name)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    list(pack(path, tmp_path / "m.synapse", PackOptions()))
    with torch.inference_mode():
        assert torch.equal(*(load_model(each).model(TEXT)[0] for each in (path, tmp_path / "m.synapse")))


def test_a_number_of_shared_experts_that_lies_is_refused(tmp_path: Path) -> None:
    path = edited(family(tmp_path / "model", "DeepseekV3"), n_shared_experts=10**30)
    with pytest.raises(InputError, match="n_shared_experts is 1000000"):
        load_model(path)
