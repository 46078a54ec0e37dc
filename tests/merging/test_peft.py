"""Against PEFT, where it is installed: adapters into their base, adapters with each other, adapters extracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthe_core.errors import InputError
from synthe_core.events import Result
from synthe_core.merging.extract import extract_lora
from synthe_core.merging.method import Method
from synthe_core.storage.adapter_files import manifest_of
from synthe_core.storage.manifest import MANIFEST
from tests.merging.models import CONFIG, adapter, folder, llama, moved, result

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers")

MODULES = [f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn.q_proj", "mlp.down_proj")]


def load(base: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(base)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path / "base", llama())


@pytest.fixture
def two(tmp_path: Path, base: Path) -> list[Path]:
    return [adapter(tmp_path / name, str(base), llama(), MODULES, seed=i) for i, name in enumerate("ab")]


COMBINATIONS: list[tuple[str, str, str, dict[str, Any], list[float]]] = [
    ("linear", "factors", "task_arithmetic", {}, [1.0, 0.7]),
    ("magnitude_prune", "factors", "magnitude_prune", {"density": 0.5}, [1.0, 0.7]),
    ("ties", "factors", "ties", {"density": 0.5}, [1.0, 1.0]),
    ("svd", "adapter", "task_arithmetic", {}, [1.0, 0.7]),
    ("ties_svd", "adapter", "ties", {"density": 0.5}, [1.0, 1.0]),
    ("magnitude_prune_svd", "adapter", "magnitude_prune", {"density": 0.5}, [1.0, 0.7]),
    ("cat", "adapter", "task_arithmetic", {"rank": 8}, [1.0, 0.7]),
]


@pytest.mark.parametrize(
    "combination,form,method,shared,weights", COMBINATIONS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_adapters_combined(
    tmp_path: Path,
    base: Path,
    two: list[Path],
    combination: str,
    form: str,
    method: str,
    shared: dict[str, Any],
    weights: list[float],
) -> None:
    theirs = peft.PeftModel.from_pretrained(load(base), two[0], adapter_name="a")
    theirs.load_adapter(two[1], adapter_name="b")
    rank = shared.get("rank")
    density = {"density": shared["density"]} if "density" in shared else {}
    theirs.base_model.add_weighted_adapter(
        ["a", "b"],
        weights,
        "merged",
        combination_type=combination,
        **density,
        **({"svd_rank": 4} if "svd" in combination else {}),
    )
    listed = [{"model": str(path), "parameters": {"weight": w}} for path, w in zip(two, weights, strict=True)]
    ours = result(tmp_path / "ours", method, listed, parameters=density, rank=rank, **{"as": form})
    for module in MODULES:
        inner = theirs.base_model.model.get_submodule(module)
        expected = inner.lora_B["merged"].weight @ inner.lora_A["merged"].weight * inner.scaling["merged"]
        down, up = (ours[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        assert (up @ down - expected).abs().max() <= 2e-6, module  # entries up to 2.6
        if form == "factors":
            assert (down - inner.lora_A["merged"].weight).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["dare_ties", "dare_linear"])
def test_drawn_at_random_with_the_same_seed(name: str) -> None:
    from peft.utils import merge_utils

    tensors = [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.manual_seed(3)
    expected = getattr(merge_utils, name)([each.clone() for each in tensors], torch.ones(3), 0.5)
    values = {"weight": (1.0,), "density": (0.5,), **({"normalize": True} if name == "dare_ties" else {})}
    ours = Method(name)(tensors, torch.zeros(8, 16), values, generator=torch.Generator().manual_seed(3))
    assert (ours - expected).abs().max() <= 1e-6


VARIANTS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True},
    {"r": 4, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    {"r": 4, "target_modules": ["v_proj", "embed_tokens"]},
    {"r": 4, "target_modules": ["v_proj", "o_proj"], "use_dora": True},
    {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    {"r": 4, "target_modules": ["v_proj"], "trainable_token_indices": [3, 39]},
    {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "olora", "use_rslora": True},
    {"r": 4, "lora_alpha": 9, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"},
    {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "pissa", "use_dora": True},
    {
        "r": 4,
        "target_modules": ["up_proj"],
        "rank_pattern": {r"layers\.(0|2)\.mlp.*": 2},
        "alpha_pattern": {"^.*1.*$": 3},
    },
    {"r": 4, "target_modules": ["q_proj", "o_proj"], "lora_bias": True, "use_rslora": True},
    {"r": 4, "target_modules": ["q_proj"], "bias": "all"},
    {"r": 4, "target_modules": ["q_proj"], "bias": "lora_only"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "+".join(v))
def test_into_the_base(tmp_path: Path, variant: dict[str, Any]) -> None:
    """What `merge_and_unload` gives, in every layout that PEFT saves."""
    biases = {
        f"{name.removesuffix('weight')}bias": torch.arange(len(tensor)) / 50
        for name, tensor in llama().items()
        if "self_attn" in name
    }
    with_bias = "bias" in "".join(variant)
    base = folder(tmp_path / "base", llama() | (biases if with_bias else {}), CONFIG | {"attention_bias": with_bias})
    torch.manual_seed(0)
    theirs = peft.get_peft_model(load(base), peft.LoraConfig(task_type="CAUSAL_LM", **variant))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.02 if "magnitude" in name else 0.3))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = result(tmp_path / "ours", "linear", [f"{base}+{tmp_path / 'adapter'}"])
    expected = theirs.merge_and_unload().state_dict()
    assert ours.keys() == expected.keys()
    for name in expected:
        assert (ours[name] - expected[name]).abs().max() <= 1e-6, name


def test_an_extracted_adapter_is_read_by_peft(tmp_path: Path, base: Path) -> None:
    """At full rank, and with all the rest, the adapter gives the tuned model back."""
    tuned = moved(llama(), 7)
    folder(tmp_path / "tuned", tuned)
    events = list(extract_lora(str(base), str(tmp_path / "tuned"), rank=16, out=tmp_path / "adapter", rest=True))
    (done,) = [event for event in events if isinstance(event, Result)]
    assert done.values["retained"] == pytest.approx(1.0, abs=1e-6)
    read = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter").merge_and_unload().state_dict()
    ours = result(tmp_path / "ours", "linear", [f"{base}+{tmp_path / 'adapter'}"])
    for name, tensor in tuned.items():
        assert (read[name] - tensor).abs().max() <= 2e-6, name
        assert (ours[name] - tensor).abs().max() <= 2e-6, name
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == len(tuned) + 3 * 7 + 2


def test_a_run_with_an_adapter_is_its_best_checkpoint(tmp_path: Path, base: Path) -> None:
    """As a run folder is everywhere: with MODEL+RUN, and alone over a base."""
    folders = [tmp_path / "run" / "checkpoints" / f"step-0000000{step}" for step in (1, 2, 3)]
    for seed, (path, score) in enumerate(zip(folders, (1.5, 1.2, 1.4), strict=True)):
        adapter(path, str(base), llama(), MODULES, seed=seed)
        manifest = manifest_of(path).model_copy(update={"metrics": {"bits_per_byte": score}, "step": seed + 1})
        (path / MANIFEST).write_text(manifest.model_dump_json())
    expected = result(tmp_path / "expected", "linear", [f"{base}+{folders[1]}"])
    plus = result(tmp_path / "plus", "linear", [f"{base}+{tmp_path / 'run'}"])
    alone = result(tmp_path / "alone", "linear", [tmp_path / "run"], base)
    for merged in (plus, alone):
        assert all(torch.equal(merged[each], expected[each]) for each in expected)
    with pytest.raises(InputError, match="empty holds no checkpoint"):
        (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
        result(tmp_path / "none", "linear", [f"{base}+{tmp_path / 'empty'}"])
