"""QLoRA: an adapter is trained over matrices that stay quantised, and nothing else of training changes."""

from __future__ import annotations

from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest
import torch

from synthe_core.adapters.lora_linear import adapter_parameters, attach, detach, linear_maps, lora_linears
from synthe_core.adapters.targets import new_adapter
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice
from synthe_core.model.classifier import build_model
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.model.quantized_model import quantizable_matrices
from synthe_core.model.without_storage import without_storage
from synthe_core.quantization.matrix import QuantizedMatrix
from synthe_core.quantization.tensor_file import open_tensors, write_quantized
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints, load_weights, save, weights
from synthe_core.storage.checkpoint.quantized import load_quantized
from synthe_core.storage.manifest import Manifest
from synthe_core.storage.yaml_reader import YamlSource
from synthe_core.training import train
from synthe_core.training.adapting import base_of, frozen_model
from tests.training.conftest import assert_same, of

MODEL = {"width": 64, "block": [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 96}]}
FORMATS = ["int8", "int4", "int4_asymmetric", "nf4"]


def lora(format: str | None = "nf4", **options: Any) -> dict[str, Any]:
    return {"rank": 4, "quantize": format, **options}


@pytest.fixture
def base(recipe, tmp_path) -> Path:
    list(train(recipe(model=MODEL, budget="2steps", validations=1), out=tmp_path / "base"))
    return checkpoints(tmp_path / "base")[-1]


@pytest.fixture
def narrow(base, tmp_path) -> Path:
    """The base with its weights in bfloat16."""
    whole = Checkpoint.open(base)
    tensors = {name: tensor.bfloat16() for name, tensor in whole.tensors.items()}
    facts: dict[str, Any] = {"manifest": Manifest(), "tokenizer": whole.tokenizer()}
    save(tmp_path / "narrow", recipe=whole.recipe, vocab=257, tensors=tensors, **facts)
    return tmp_path / "narrow"


def dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        n: m.matrix.dequantize()
        for n, m in model.named_modules()
        if isinstance(getattr(m, "matrix", None), QuantizedMatrix)
    }


def test_a_step_is_that_of_the_dequantised_weights(recipe, base) -> None:
    """The loss and every gradient of the adapter."""
    config = recipe(model=MODEL, lora=lora())
    model = frozen_model(config, 257, Checkpoint.open(base))
    held = dequantized(model)
    assert {name.rpartition(".")[2] for name in held} == {"qkv", "out", "gate_up", "embedding", "head"}
    other = build_model(config.model, 257)
    load_weights(other, Checkpoint.open(base).tensors, base)
    with torch.no_grad():
        for name, weight in held.items():
            other.get_submodule(name).weight.copy_(weight)
    adapter = new_adapter(other, config.train.lora)
    for change in adapter.maps.values():
        change.lora_B.normal_()
    tokens, targets = torch.randint(257, (2, 30)), torch.randint(257, (2, 30))
    losses, gradients = [], []
    for each in (model, other):
        attach(each, adapter, trainable=True)
        losses.append(each.loss(tokens, targets)[0].objective)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in adapter_parameters(each).items()})
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)
    assert model.parameter_count() == other.parameter_count() and model.flops(30) == other.flops(30)
    assert all(torch.equal(weight, held[name]) for name, weight in dequantized(model).items())
    detach(model)
    assert not lora_linears(model) and dequantized(model).keys() == held.keys()


@pytest.mark.parametrize("format", [*FORMATS, "double_quant"])
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, base, format, tmp_path) -> None:
    options = lora(double_quant=True) if format == "double_quant" else lora(format, dropout=0.1)
    config = recipe(model=MODEL, lora=options, runtime={"recompute": format == "nf4"})
    list(train(config, out=tmp_path / "whole", init=base))
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, out=tmp_path / "parts", init=base, stop=stop):
            if isinstance(event, Metric) and event.phase == "train" and event.step == 2:
                stop.set()
    torch.manual_seed(1)
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    names = {path.name for path in checkpoints(tmp_path / "parts")[-1].iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names


def test_the_first_adapter_is_that_of_a_float_base(recipe, base, tmp_path) -> None:
    """So that two runs of one seed differ by the base alone."""
    still = {"budget": "1steps", "lr": 1e-12, "weight_decay": 0.0, "optimizer": "adamw", "validations": 1}
    for format in (None, "nf4"):
        list(train(recipe(model=MODEL, lora=lora(format), **still), out=tmp_path / str(format), init=base))
    one, other = (Checkpoint.open(tmp_path / name).adapter.tensors for name in ("None", "nf4"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-9)


def test_parameters_are_counted_as_ever(recipe, base, tmp_path) -> None:
    messages = []
    for format in (None, "int4"):
        events = list(train(recipe(model=MODEL, lora=lora(format)), out=tmp_path / str(format), init=base))
        messages.append(of(events, Notice)[0].message)
    assert messages[0] == messages[1] and "of which" in messages[0]


def test_bfloat16_and_state_that_is_carried(recipe, base, tmp_path) -> None:
    config = recipe(model=MODEL, lora=lora("int4"), runtime={"precision": "bfloat16"}, carry=True)
    list(train(config, out=tmp_path / "run", init=base))
    assert Checkpoint.open(tmp_path / "run").manifest.metrics["loss"] < 7


def test_weights_as_they_are_stored(recipe, base, narrow, tmp_path) -> None:
    model = frozen_model(recipe(model=MODEL, lora=lora("as_stored")), 257, Checkpoint.open(narrow))
    exact = Checkpoint.open(narrow).tensors
    for name, weight in dequantized(model).items():
        assert model.get_submodule(name).matrix.format == "bfloat16"
        assert torch.equal(weight, exact["embedding.weight" if name == "head" else f"{name}.weight"].float())
    with pytest.raises(InputError, match="has its weights in float32: as they are stored, nothing is quantised"):
        list(train(recipe(model=MODEL, lora=lora("as_stored")), out=tmp_path / "run", init=base))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_codes_of_a_quantised_checkpoint_stay_as_they_are(recipe, base, format, tmp_path) -> None:
    whole = Checkpoint.open(base).tensors
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in whole.items()}
    write_quantized(tmp_path / "q.safetensors", whole, shapes, format)
    stored = open_tensors(tmp_path / "q.safetensors")
    with without_storage():
        model = build_model(recipe(model=MODEL).model, 257)
    load_quantized(model, stored, base, "as_stored")
    held = dequantized(model)
    assert {model.get_submodule(name).matrix.format for name in held} == {format}
    for name, weight in held.items():
        assert torch.equal(weight, stored["embedding.weight" if name == "head" else f"{name}.weight"])


LEARNERS: list[Any] = [
    *("delta", "kalman", "mamba", "mamba2", "rwkv7", "gla", "hyena", "slots", "momentum", "kda", "mlstm"),
    *("gated_conv", "fast_weights", "rg_lru", "test_time"),
    {"type": "experts", "experts": 4, "top_k": 2},
    {"type": "latent_attention", "heads": 2},
]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda each: each if isinstance(each, str) else each["type"])
def test_every_learner_runs_over_quantised_matrices(learner, tmp_path) -> None:
    """Those too that read a matrix as a whole."""
    config = Recipe.model_validate({"model": {"width": 64, "blocks": 1, "block": [learner]}})
    torch.manual_seed(0)
    whole = build_model(config.model, 128)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    with without_storage():
        model = build_model(config.model, 128)
    load_quantized(model, weights(whole), tmp_path, "int8")
    held = dequantized(model)
    assert len(held) > 2 and not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    with torch.no_grad():
        for name, weight in held.items():
            whole.get_submodule(name).weight.copy_(weight)
    tokens = torch.randint(128, (1, 24))
    losses = []
    for each in (whole, model):
        torch.manual_seed(1)
        losses.append(each.loss(tokens, tokens)[0].total)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    assert linear_maps(model).keys() == linear_maps(whole).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "nf5"}, "train.lora.quantize"),
        ({"double_quant": True}, "double_quant is an option of nf4"),
        ({"quantize": "int4", "double_quant": True}, "double_quant is an option of nf4"),
    ],
)
def test_an_invalid_format_is_named(options, message) -> None:
    values = {"model": {"width": 64, "blocks": 1, "block": ["mlp"]}, "train": {"lora": {"rank": 2, **options}}}
    with pytest.raises(InputError, match=message) as error:
        Recipe.from_source(YamlSource("recipe.yaml", values, {}))
    if options.get("quantize") == "nf5":
        assert "nf4" in f"{error.value} {error.value.hint}"


def test_a_model_that_transformers_runs_is_refused(base) -> None:
    config = Recipe.model_validate({"model": {"width": 64, "blocks": 1, "block": ["mlp"]}, "train": {"lora": lora()}})
    spec = PublishedSpec(config={"architectures": ["XForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1})
    config, checkpoint = config.model_copy(update={"model": spec}), Checkpoint.open(base)
    checkpoint.recipe = config  # type: ignore[misc]
    with pytest.raises(InputError, match="transformers runs XForCausalLM, and holds its matrices as floats"):
        base_of(checkpoint, config)


def test_quantizable_matrices_have_names_of_checkpoints(recipe, base) -> None:
    model = build_model(recipe(model=MODEL).model, 257)
    assert quantizable_matrices(model).keys() < Checkpoint.open(base).tensors.keys()
