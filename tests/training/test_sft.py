"""Supervised fine-tuning: the loss of a batch is that of its rows alone, however it is cut, and runs resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event as Stop

import pytest
import torch

from synthe_core.data.conversations.example_batches import GOOD
from synthe_core.data.stream import Batch
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice, Progress, Result, Saved
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import recipe_from_checkpoint, train
from synthe_core.training.gradients import accumulate_gradients, micro_batches
from synthe_core.training.objectives.objective import ObjectiveContext
from synthe_core.training.objectives.sft import SFT
from synthe_core.training.settings import Settings
from tests.training.conftest import assert_same, of

VOCAB, LENGTHS = 40, (3, 17, 9, 1, 12, 5)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    block = [{"type": "delta", "heads": 2}, {"type": "conv"}, {"type": "attention", "heads": 2}]
    return LanguageModel(ModelSpec.model_validate({"width": 16, "blocks": 2, "block": block}), VOCAB).double()


def rows(group: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(VOCAB, (len(LENGTHS), max(LENGTHS) + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    scored = torch.rand(targets.shape, generator=generator) < 0.6
    scored[:, 0] = True
    inside = torch.arange(max(LENGTHS)) < lengths[:, None]
    targets[~(scored & inside)] = IGNORED
    return Batch(tokens[:, :-1] * inside, targets, lengths, group, {GOOD: torch.arange(len(LENGTHS))})


def test_a_row_in_company_has_the_loss_that_it_has_alone(model: LanguageModel) -> None:
    """No row sees its neighbour, in attention or in a state, and padding counts nowhere."""
    batch = rows()
    together = SFT()(model, batch, ObjectiveContext()).each
    for row, length in enumerate(LENGTHS):
        alone = Batch(batch.inputs[row : row + 1, :length], batch.targets[row : row + 1, :length])
        each = SFT()(model, alone, ObjectiveContext()).each
        torch.testing.assert_close(together[row, :length], each[0], rtol=1e-10, atol=1e-10)
        assert not together[row, length:].any()


@pytest.mark.parametrize("micro_batch", [1, 2, 6])
def test_the_gradient_is_that_of_the_mean_over_all_targets(model: LanguageModel, micro_batch: int) -> None:
    """Means over micro-batches with unequal numbers of targets are never averaged."""
    batch = rows()
    parameters = dict(model.named_parameters())
    loss = SFT()(model, batch, ObjectiveContext())
    expected = torch.autograd.grad(loss.total / loss.scored, list(parameters.values()), allow_unused=True)
    settings = Settings(ExecutionContext(torch.device("cpu")), micro_batch)
    report = accumulate_gradients(SFT(), model, batch, settings, sequence=max(LENGTHS))
    assert report.num_targets == int(loss.scored) and report.num_tokens == sum(LENGTHS)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(("group", "micro_batch"), [(1, 2), (2, 2), (3, 1), (2, 50)])
def test_passes_hold_whole_groups_within_their_tokens(group: int, micro_batch: int) -> None:
    batch = rows(group)
    parts = list(micro_batches(batch, micro_batch, 17))
    order = torch.cat([part.extras[GOOD] for part in parts])
    assert sorted(order.tolist()) == list(range(len(LENGTHS)))
    for part in parts:
        firsts = part.extras[GOOD].view(-1, group)[:, :1]
        assert torch.equal(part.extras[GOOD].view(-1, group), firsts + torch.arange(group))
        assert part.lengths is not None and part.inputs.shape[1] == int(part.lengths.max())
        assert part.inputs.numel() <= micro_batch * 17 or len(part.inputs) == group


def chats(path: Path, count: int = 24) -> Path:
    lines = []
    for number in range(count):
        question, answer = f"What comes after {number}?", f"It is {number + 1}." * (1 + number % 3)
        lines.append(json.dumps({"prompt": question, "completion": answer}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def chat_recipe(recipe, tmp_path):  # type: ignore[no-untyped-def]
    def make(**keys):  # type: ignore[no-untyped-def]
        data = {"sources": str(chats(tmp_path / "chats.jsonl")), "sequence": 128}
        made = recipe(data=data, **{"validation_tokens": 10_000} | keys)
        return Recipe.model_validate(made.model_dump() | {"objective": "sft"})

    return make


def test_training_lowers_the_held_out_loss_and_resumes_exactly(chat_recipe, tmp_path):
    config = chat_recipe(budget="30steps", validations=3)
    events = list(train(config, out=tmp_path / "whole"))
    losses = [each.values["loss"] for each in of(events, Metric) if each.phase == "validation"]
    assert losses[-1] < losses[0] - 0.2
    for step in (4, 13):
        stop = Stop()
        with pytest.raises(Interrupted):
            for event in train(config, out=tmp_path / "parts", resume=step > 4, stop=stop):
                if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                    stop.set()
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_budget_of_epochs_is_as_many_rows(chat_recipe, tmp_path):
    config = chat_recipe(budget="1.5epochs", save_every="0.5epochs", log_every=1, keep=9)
    events = list(train(config, out=tmp_path / "run"))
    rows = round(24 * 0.8)  # a fifth of the prompts is held out
    steps = -(-3 * rows // (2 * config.train.batch))
    assert of(events, Result)[-1].values["steps"] == steps
    shown = of(events, Progress)
    assert (shown[-1].done, shown[-1].total, shown[-1].unit) == (1.5, 1.5, "epochs")
    assert all(each.eta is not None and each.eta >= 0 for each in shown if each.what == "train" and each.done)
    assert [each.step for each in of(events, Saved)] == [3, 4, 7, 8]  # 4: validation after a half
    longer = Recipe.model_validate(config.model_dump() | {"train": config.train.model_dump() | {"budget": "2epochs"}})
    events = list(train(longer, out=tmp_path / "run", resume=True))
    assert of(events, Result)[-1].values["steps"] == -(-2 * rows // config.train.batch)
    assert any("1.5epochs" in each.message and "2epochs" in each.message for each in of(events, Notice))


def test_an_epoch_of_text_is_all_of_its_sequences(recipe, tmp_path):
    config = recipe(budget="0.25epochs", validations=1)
    events = list(train(config, out=tmp_path / "run"))
    sequences = Checkpoint.open(tmp_path / "run").training_state()["text"]["tokens"][0] // config.data.sequence
    assert of(events, Result)[-1].values["steps"] == -(-sequences // (4 * config.train.batch))


@pytest.mark.parametrize(
    ("data", "positions", "objective", "sequence"),
    [({}, None, "sft", 1024), ({}, 300, "sft", 300), ({"sequence": 99}, None, "sft", 99), ({}, None, None, 256)],
)
def test_conversations_have_more_room_than_text(data, positions, objective, sequence):
    model = {"width": 16, "blocks": 1, "block": ["mlp"], "positions": positions}
    made = Recipe.model_validate({"model": model, "data": data, "objective": objective})
    assert made.data.sequence == sequence
    assert Recipe.model_validate(made.model_dump()) == made


def test_a_run_on_text_has_room_for_conversations_next(recipe, chat_recipe, tmp_path):
    list(train(recipe(budget="1steps"), out=tmp_path / "base"))
    chats_path = f"data.sources={tmp_path / 'chats.jsonl'}"
    made = recipe_from_checkpoint(tmp_path / "base", [chats_path, "objective=sft"])
    assert made.data.sequence == 1024
    assert recipe_from_checkpoint(tmp_path / "base", ["data.sequence=77", "objective=sft"]).data.sequence == 77
    list(train(chat_recipe(budget="1steps"), out=tmp_path / "chat"))
    assert recipe_from_checkpoint(tmp_path / "chat", []).data.sequence == 128


def test_another_conversation_is_another_training_text(chat_recipe, tmp_path):
    config = chat_recipe(budget="4steps")
    list(train(config, out=tmp_path / "run"))
    path = tmp_path / "chats.jsonl"
    path.write_text(path.read_text().replace("It is 7.", "It is 9."))
    longer = Recipe.model_validate(config.model_dump() | {"train": config.train.model_dump() | {"budget": "6steps"}})
    with pytest.raises(InputError, match=r"the .* text is not what it was"):
        list(train(longer, out=tmp_path / "run", resume=True))


def test_a_canary_is_measured_at_each_validation(chat_recipe, text, tmp_path):
    events = list(train(chat_recipe(budget="2steps", canary=str(text)), out=tmp_path / "run"))
    values = [each.values for each in of(events, Metric) if each.phase == "validation"]
    assert len(values) == 2 and all(3 < value["canary_bits_per_byte"] < 12 for value in values)


def test_prompts_of_a_validation_file_are_not_trained_on(chat_recipe, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    chats(held_out, 5)
    config = chat_recipe(budget="2steps")
    data = config.data.model_dump() | {"validation": str(held_out)}
    events = list(train(Recipe.model_validate(config.model_dump() | {"data": data}), out=tmp_path / "run"))
    assert any("5 rows have a prompt of the validation text" in each.message for each in of(events, Notice))


def test_sft_of_an_adapter_starts_from_a_run(chat_recipe, tmp_path):
    list(train(chat_recipe(budget="2steps"), out=tmp_path / "base"))
    config = chat_recipe(budget="3steps", lora={"rank": 2})
    list(train(config, out=tmp_path / "adapter", init=tmp_path / "base"))
    assert Checkpoint.open(tmp_path / "adapter").adapter is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"carry": True}}, "train.carry: conversations do not continue each other"),
        ({"data": {"labels": "path"}}, "data.labels"),
        ({"objective": {"type": "sft", "beta": 1}}, "unknown key 'objective.beta'"),
        ({"objective": {"type": "sftt"}}, "objective: unknown objective 'sftt'"),
        ({"objective": 3}, "an objective is a name or a mapping with a `type`"),
    ],
)
def test_what_does_not_go_with_it_is_an_error(change, message):
    from synthe_core.storage.yaml_reader import parse_yaml

    source = parse_yaml("{model: {width: 16, blocks: 1, block: [mlp]}, objective: sft}", "recipe")
    with pytest.raises(InputError, match=message):
        Recipe.from_source(source._replace(values=source.values | change))
