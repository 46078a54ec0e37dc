"""Folders in both directions: every recipe is exported, transformers loads it, and synthe reads it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError
from synthe_core.events import Notice, Result
from synthe_core.interop.huggingface.exporter import export_hf
from synthe_core.interop.importer import import_hf
from synthe_core.interop.load import load_model
from synthe_core.packing.pack import pack
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.run import train
from tests.evaluation.models import ATTENTION, DELTA, saved
from tests.interop.huggingface.auto_classes.models import EVERYTHING, blocks, each_learner, load, tokens, transformers
from tests.interop.huggingface.models import add_tokenizer
from tests.training.conftest import of

HEAD: dict[str, Any] = {"confidence": {}, "depth": {"min": 1}, "blocks": 3}


def exported(source: Path, out: Path) -> Path:
    *events, last = export_hf(source, out=out)
    assert isinstance(last, Result)
    assert last.values["architecture"] == "SyntheForCausalLM" and last.values["needs"] == "transformers and synthe"
    assert any("no published architecture computes this model" in event.message for event in of(events, Notice))
    return out


@each_learner
@torch.no_grad()
def test_every_recipe_is_exported_and_comes_back(tmp_path: Path, case: dict[str, Any]) -> None:
    block = [{"type": "conv"}, *blocks(case)]
    source = saved(tmp_path / "ours", block)
    folder = exported(source, tmp_path / "theirs")
    text = tokens()
    expected = Checkpoint.open(source).model().eval()(text)[0]
    torch.testing.assert_close(load(folder)(text).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(Checkpoint.open(folder).model().eval()(text)[0], expected, rtol=0, atol=0)


@torch.no_grad()
def test_what_belongs_to_a_model_comes_back(tmp_path: Path) -> None:
    """Tokenizer, template, generation defaults, the heads, the buffers and the length of a training sequence."""
    add_tokenizer(tmp_path / "published")
    options = {"bos_token": "<s>", "eos_token": "<|stop|>", "chat_template": "{{ messages[0]['content'] }}<|turn|>"}
    (tmp_path / "published" / "tokenizer_config.json").write_text(json.dumps(options))
    from synthe_core.data.tokenizers import load_tokenizer

    source = saved(tmp_path / "ours", EVERYTHING, load_tokenizer(tmp_path / "published"), sequence=48, **HEAD)
    folder = exported(source, tmp_path / "theirs")
    *_, last = import_hf(folder, out=tmp_path / "back")
    first, back = Checkpoint.open(source), Checkpoint.open(last.path)
    assert back.recipe.model == first.recipe.model and back.recipe.data.sequence == 48
    assert {*back.tensors} == {*first.tensors}
    assert all(torch.equal(back.tensors[name], first.tensors[name]) for name in first.tensors)
    loaded = load_model(folder)
    assert loaded.max_length is None and loaded.tokenizer.chat_template == options["chat_template"]
    assert loaded.tokenizer.begin == first.tokenizer().begin is not None
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token, theirs.eos_token, theirs.chat_template) == tuple(options.values())
    assert load(folder).generation_config.eos_token_id == first.tokenizer().end


def test_a_run_is_loaded_with_its_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The river ran past the mill and under the bridge. " * 400)
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "model": {"width": 32, "blocks": 1, "block": DELTA},
            "data": {"sources": str(tmp_path / "text.txt"), "tokenizer": "bytes", "sequence": 32},
            "train": {"budget": "4steps", "batch": 2, "validations": 2},
        }
    )
    run = tmp_path / "run"
    list(train(recipe, out=run))
    text, model = tokens(), load(run)
    torch.testing.assert_close(model(text).logits, Checkpoint.open(run).model().eval()(text)[0], rtol=0, atol=0)
    assert model.config._name_or_path == str(run) and model.generation_config.eos_token_id == 256
    tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    assert tokenizer("the sea").input_ids == list(b"the sea")
    values = recipe.model_dump(mode="json")
    adapted = Recipe.model_validate(values | {"name": "adapted", "train": values["train"] | {"lora": {"rank": 2}}})
    list(train(adapted, out=tmp_path / "adapted", init=run))
    merged = Checkpoint.open(tmp_path / "adapted").model().eval()
    torch.testing.assert_close(load(tmp_path / "adapted")(text).logits, merged(text)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_synapse_file_is_loaded_by_the_class_itself(tmp_path: Path) -> None:
    from synthe_core.interop.huggingface.auto_classes.modeling import SyntheForCausalLM

    source = saved(tmp_path / "model", DELTA)
    list(pack(source, tmp_path / "model.synapse"))
    model = SyntheForCausalLM.from_pretrained(tmp_path / "model.synapse").eval()
    text = tokens()
    torch.testing.assert_close(model(text).logits, load(source)(text).logits, rtol=0, atol=0)
    with pytest.raises(OSError, match="not a valid JSON"):
        transformers.AutoConfig.from_pretrained(tmp_path / "model.synapse")


def test_growing_models_say_how_long_a_text_they_know(tmp_path: Path) -> None:
    for block, limit in ((DELTA, None), (ATTENTION, 64)):
        config = load(saved(tmp_path / str(limit), block)).config
        assert config.max_position_embeddings == limit and config.sequence == 64
        assert config.hidden_size == 32 and config.num_hidden_layers == 2


def test_folders_of_two_models_are_refused(tmp_path: Path) -> None:
    folder = exported(saved(tmp_path / "ours", DELTA), tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    name = "blocks.0.learners.0.out.weight"

    def change(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        (folder / "config.json").write_text(json.dumps(config | values))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    fewer = {key: value for key, value in weights.items() if key != name}
    for tensors, message in (
        (fewer, f"has no tensor {name}"),
        (weights | {"odd.weight": torch.zeros(2)}, "has a tensor odd.weight"),
        (weights | {name: torch.zeros(3, 3)}, f"{name}|ignore_mismatched_sizes"),  # transformers names it in a table
    ):
        change({}, tensors)
        with pytest.raises((InputError, RuntimeError), match=message):
            load(folder)
        with pytest.raises(InputError, match=message):
            Checkpoint.open(folder).model()
    change({"model": config["model"] | {"block": [{"type": "delat"}]}}, weights)
    for opening in (load, lambda path: Checkpoint.open(path).model()):
        with pytest.raises(InputError, match="delat"):
            opening(folder)
    change({"model": config["model"] | {"blocks": 1000}}, weights)
    with pytest.raises(InputError, match="holds no weights of the model"):
        Checkpoint.open(folder).model()
    change({"model": None}, weights)
    with pytest.raises(InputError, match="has no model"):
        Checkpoint.open(folder).model()
