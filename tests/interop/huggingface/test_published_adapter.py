"""An adapter that PEFT trained on published maps has the same effect on our learners, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.errors import InputError
from synthe_core.interop.importer import import_hf
from synthe_core.interop.published_shapes import RecordedShapes, recorded_shapes
from synthe_core.model.language_model import LanguageModel
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.unpack import unpack
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.backend_families import FAMILIES, family
from tests.interop.huggingface.served_models import folder

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from synthe_core.interop.load import load_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*does not record which weights")
TEXT = torch.tensor([[5, 9, 200, 31, 7, 7, 88, 2, 64, 150]])
TARGETS: dict[str, list[str] | str] = {
    "Llama": "all-linear",
    "Gemma3": "all-linear",
    "Qwen2": ["q_proj", "v_proj"],
    "Phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "GPTNeoX": ["query_key_value", "dense"],
    "Glm": ["q_proj", "k_proj", "o_proj"],  # whose positions turn neighbouring channels
    "Qwen3Next": ["q_proj", "k_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj"],
    "GraniteMoeHybrid": ["q_proj", "v_proj", "in_proj"],
}
GLM = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def base(path: Path, kind: str) -> Path:
    return family(path, kind) if kind in FAMILIES else folder(path, kind, **(GLM if kind == "Glm" else {}))


def adapted(path: Path, out: Path, targets: Any, **options: Any) -> Tensor:
    """Saves an adapter of random numbers, and returns the logits of the model with it."""
    inner = transformers.AutoModelForCausalLM.from_pretrained(path)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(inner, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
        model.save_pretrained(out)
        return model.eval()(TEXT, use_cache=False).logits


@pytest.mark.parametrize("kind", TARGETS)
def test_an_adapter_of_peft_has_the_same_effect(tmp_path: Path, kind: str) -> None:
    path = base(tmp_path / "model", kind)
    expected = adapted(path, tmp_path / "adapter", TARGETS[kind])
    served = load_model(path)
    assert isinstance(served.model, LanguageModel)
    served.load_adapter("notes", tmp_path / "adapter")
    scale = float(expected.abs().max())
    with torch.inference_mode(), served.activate(served.adapters["notes"]):
        torch.testing.assert_close(served.model(TEXT)[0], expected, rtol=0, atol=1e-4 * scale)
    with torch.inference_mode():
        assert float((served.model(TEXT)[0] - expected).abs().max()) > 1e-2 * scale, "the adapter changes something"
        merged = load_model(tmp_path / "adapter").model(TEXT)[0]
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4 * scale)


def test_rank_and_scale_of_each_map_are_its_own(tmp_path: Path) -> None:
    path = base(tmp_path / "model", "Llama")
    options = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 1}, "use_rslora": True}
    expected = adapted(path, tmp_path / "adapter", ["q_proj", "k_proj", "v_proj"], **options)
    with torch.inference_mode():
        merged = load_model(tmp_path / "adapter").model(TEXT)[0]
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    adapter = Checkpoint.open(tmp_path / "adapter").fitted_adapter
    assert adapter is not None and {change.r for change in adapter.maps.values()} == {3 + 2 + 3}


@pytest.mark.parametrize(("kind", "target"), [("Gemma3", "q_proj"), ("DeepseekV3", "q_a_proj")])
def test_an_adapter_of_another_model_is_refused_by_name(tmp_path: Path, kind: str, target: str) -> None:
    served = load_model(base(tmp_path / "model", "Llama"))
    adapted(base(tmp_path / "other", kind), tmp_path / "adapter", [target])
    with pytest.raises(InputError, match=rf"changes model\.layers\..*{target}") as caught:
        served.load_adapter("notes", tmp_path / "adapter")
    assert "another model" in str(caught.value.hint)


def test_a_change_of_what_is_no_matrix_is_refused_by_name(tmp_path: Path) -> None:
    path = base(tmp_path / "model", "Llama")
    source = Checkpoint.open(path).source
    change = LowRank(torch.ones(1, 1), torch.ones(64, 1), 1.0)
    with pytest.raises(InputError, match=r"changes model\.norm as a matrix \[64, 1\], and the model's is \[64\]"):
        source.fitted(Adapter({"model.norm": change}), tmp_path)


@pytest.mark.parametrize("kind", ["Llama", "Glm", "Qwen3Next", "GraniteMoeHybrid"])
def test_an_imported_model_takes_an_adapter_of_what_it_was_imported_from(tmp_path: Path, kind: str) -> None:
    """The published folder is gone by then."""
    path = base(tmp_path / "model", kind)
    expected = adapted(path, tmp_path / "adapter", TARGETS[kind])
    list(import_hf(path, out=tmp_path / "run"))
    path.rename(tmp_path / "away")
    served = load_model(tmp_path / "run")
    served.load_adapter("notes", tmp_path / "adapter")
    scale = float(expected.abs().max())
    with torch.inference_mode(), served.activate(served.adapters["notes"]):
        torch.testing.assert_close(served.model(TEXT)[0], expected, rtol=0, atol=1e-4 * scale)
    list(pack(tmp_path / "run", tmp_path / "m.synapse", PackOptions(adapters=[f"notes={tmp_path / 'adapter'}"])))
    list(unpack(tmp_path / "m.synapse", tmp_path / "out"))
    for adapter in (tmp_path / "adapter", tmp_path / "out" / "adapters" / "notes"):
        merged = Checkpoint.open(adapter, base=tmp_path / "m.synapse").model()
        with torch.inference_mode():
            torch.testing.assert_close(merged(TEXT)[0], expected, rtol=0, atol=1e-4 * scale)


def test_an_imported_model_refuses_an_adapter_of_another(tmp_path: Path) -> None:
    list(import_hf(base(tmp_path / "model", "Llama"), out=tmp_path / "run"))
    adapted(base(tmp_path / "other", "DeepseekV3"), tmp_path / "adapter", ["q_a_proj"])
    with pytest.raises(InputError, match=r"changes model\.layers\..*q_a_proj") as caught:
        load_model(tmp_path / "run").load_adapter("notes", tmp_path / "adapter")
    assert "another model" in str(caught.value.hint)


@pytest.mark.parametrize(
    "record",
    [
        {"config": None},
        {"shapes": None},
        {"shapes": {"model.norm.weight": [-1]}},
        {"shapes": {}},
        {"config": {"architectures": ["MixtralForCausalLM"]}},
        {"config": {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9,
                    "num_attention_heads": 2, "intermediate_size": 4}},
    ],
)  # fmt: skip
def test_a_damaged_record_of_the_published_model_is_one_line(tmp_path: Path, record: dict[str, Any]) -> None:
    adapted(base(tmp_path / "model", "Llama"), tmp_path / "adapter", ["q_proj"])
    list(import_hf(tmp_path / "model", out=tmp_path / "run"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["source"] |= record
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError):
        load_model(tmp_path / "run").load_adapter("notes", tmp_path / "adapter")


def test_shapes_are_recorded_by_what_their_names_have_in_common() -> None:
    shapes = {f"layers.{i}.up.weight": [8, 4] for i in range(50)}
    shapes |= {"layers.0.mix.weight": [3, 4], "layers.1.mix.weight": [5, 4], "norm.weight": [4]}
    record = recorded_shapes(shapes)
    assert len(record) == 4
    read = RecordedShapes(json.loads(json.dumps(record)), "manifest.json")
    assert all(name in read and read.shape(name) == shape for name, shape in shapes.items())
    assert "layers.2.mix.weight" not in read and "head.weight" not in read


def test_a_packed_model_has_the_adapter_on_its_own_maps(tmp_path: Path) -> None:
    path = base(tmp_path / "model", "Llama")
    expected = adapted(path, tmp_path / "adapter", "all-linear", rank_pattern={"k_proj": 2})
    list(pack(path, tmp_path / "m.synapse", PackOptions(adapters=[f"notes={tmp_path / 'adapter'}"])))
    list(unpack(tmp_path / "m.synapse", tmp_path / "out"))
    served = load_model(tmp_path / "m.synapse")
    served.load_adapter("notes", tmp_path / "out" / "adapters" / "notes")
    with torch.inference_mode(), served.activate(served.adapters["notes"]):
        scale = float(expected.abs().max())
        torch.testing.assert_close(served.model(TEXT)[0], expected, rtol=0, atol=1e-4 * scale)
