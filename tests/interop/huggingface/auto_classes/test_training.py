"""Training through transformers: the loss, its gradients, Trainer, and adapters of PEFT."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.load import load_model
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import DELTA, saved
from tests.interop.huggingface.auto_classes.models import (
    EVERYTHING,
    blocks,
    each_learner,
    load,
    pair,
    tokens,
    transformers,
)

PARTS: dict[str, Any] = {"confidence": {}, "depth": {"min": 1}, "blocks": 3}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return named


def test_the_loss_and_its_gradients_are_ours(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path / "model", EVERYTHING, **PARTS)
    text = tokens()
    labels = text.clone()
    labels[0, 5:8] = -100
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    ours.train()
    torch.manual_seed(0)
    expected, _ = ours.loss(text, targets)
    expected.objective.backward()
    wanted = gradients(ours)
    for checkpointing in (False, True):
        theirs = load(tmp_path / "model").train()  # its thresholds have not moved
        if checkpointing:
            theirs.gradient_checkpointing_enable()
            assert theirs.language_model.recompute
        torch.manual_seed(0)
        output = theirs(text, labels=labels)
        assert output.past_key_values is None  # no state is kept while training
        torch.testing.assert_close(output.loss, expected.objective, rtol=1e-6, atol=1e-6)
        output.loss.backward()
        own = gradients(theirs)
        assert own.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    torch.manual_seed(0)
    theirs = load(tmp_path / "model").train()
    half = theirs(text, labels=labels, num_items_in_batch=2 * expected.scored).loss
    torch.testing.assert_close(half, expected.objective / 2, rtol=1e-6, atol=1e-6)


def test_padding_has_no_part_in_the_loss(tmp_path: Path) -> None:
    _, model = pair(tmp_path / "model", DELTA)
    text, mask = tokens(2), torch.ones(2, 13, dtype=torch.int64)
    mask[0, :4] = mask[1, 6:] = 0
    alone = [model(text[:1, 4:], labels=text[:1, 4:]).loss * 8, model(text[1:, :6], labels=text[1:, :6]).loss * 5]
    together = model(text, attention_mask=mask, labels=text).loss
    torch.testing.assert_close(together, sum(alone) / 13, rtol=1e-5, atol=1e-6)


def test_buffers_move_once_a_step(tmp_path: Path) -> None:
    """Thresholds of routers are moved after the backward pass, and not before: recomputed blocks route as they did."""
    theirs = load(saved(tmp_path / "model", EVERYTHING, **PARTS)).train()
    text = tokens()
    names = [name for name, _ in theirs.named_buffers() if "threshold" in name]
    before = {name: theirs.get_buffer(name).clone() for name in names}
    loss = theirs(text, labels=text).loss
    theirs(text, labels=text)  # a second pass before the first is differentiated
    assert all(torch.equal(theirs.get_buffer(name), before[name]) for name in names)
    loss.backward()
    theirs.save_pretrained(tmp_path / "saved")
    moved = [name for name in names if not torch.equal(theirs.get_buffer(name), before[name])]
    assert moved and not theirs._updates
    again = Checkpoint.open(tmp_path / "saved").model()
    assert all(torch.equal(again.get_buffer(name), theirs.get_buffer(name)) for name in names)


def rows(count: int = 8) -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens(count, 24)]


def train(model: Any, folder: Path, **options: Any) -> Any:
    settings = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-2, logging_steps=1, save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows(), eval_dataset=rows(2))
    trainer.train()
    return trainer


def test_trainer_trains_and_its_folder_is_a_checkpoint(tmp_path: Path) -> None:
    model = load(saved(tmp_path / "model", EVERYTHING, **PARTS))
    trainer = train(model, tmp_path / "out", gradient_checkpointing=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert trainer.evaluate()["eval_loss"] < losses[0]
    opened = Checkpoint.open(tmp_path / "out" / "checkpoint-5")
    text = tokens()
    with torch.no_grad():
        torch.testing.assert_close(opened.model().eval()(text)[0], model.eval()(text).logits, rtol=0, atol=0)
        torch.testing.assert_close(load(opened.path)(text).logits, model(text).logits, rtol=0, atol=0)


@each_learner
def test_an_adapter_of_peft_is_the_same_here(tmp_path: Path, case: dict[str, Any]) -> None:
    """Every map of every learner, also those that are called in part or whose matrix is read."""
    peft = pytest.importorskip("peft")
    base = load(saved(tmp_path / "model", blocks(case)))
    text = tokens(2)
    plain = base(text).logits.detach()
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model(input_ids=text, labels=text).loss.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name
    changed = model(input_ids=text).logits.detach()
    assert (changed - plain).abs().max() > 0.5
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=text).logits, plain, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT records no digest of the base
        ours = Checkpoint.open(tmp_path / "adapter").model().eval()
    torch.testing.assert_close(ours(text)[0], changed, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.merge_and_unload()(text).logits, changed, rtol=0, atol=1e-4)


def test_an_adapter_that_trainer_trained_is_served(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    path = saved(tmp_path / "model", DELTA)
    model = peft.get_peft_model(load(path), peft.LoraConfig(r=2, target_modules=["out", "up", "project"]))
    train(model, tmp_path / "out")
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(path)
    served, text = load_model(path), tokens(2)
    with pytest.warns(UserWarning, match="does not record which weights"):
        served.load_adapter("notes", tmp_path / "adapter")
    served.check_adapter(served.adapters["notes"], tmp_path / "adapter")
    assert isinstance(served, LoadedModel)
    with torch.no_grad(), served.activate(served.adapters["notes"]):
        ours = served.logits(served.forward(text, None).hidden)
    expected = model.eval()(input_ids=text).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert (load(path)(text).logits - expected).abs().max() > 1e-3
    again = peft.PeftModel.from_pretrained(load(path), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(input_ids=text).logits, expected, rtol=0, atol=1e-6)


def test_other_kinds_of_adapters_are_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    path, text = saved(tmp_path / "model", EVERYTHING), tokens(1)
    for config, message in (
        (peft.LoHaConfig(r=2, target_modules=["out"]), "has an adapter of the class"),
        (peft.LoraConfig(r=2, target_modules=["gate_up"], use_dora=True), "is a variant of LoRA"),
    ):
        with pytest.raises(InputError, match=message):
            peft.get_peft_model(load(path), config)(input_ids=text)
