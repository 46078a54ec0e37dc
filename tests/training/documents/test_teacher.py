"""The teacher's predictions: those of the model without the adapter after the passage, at the student's own tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from synthe_core.adapters.lora_linear import attach
from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import new_adapter
from synthe_core.data.conversations.prepare import Reader
from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.training.documents.teacher import TeacherTable, read_answers, teacher_table
from synthe_core.training.objectives import OBJECTIVES
from synthe_core.training.objectives.objective import ObjectiveContext, ObjectiveSetup

ROWS = [
    ("Who keeps the key?", "Ottilie Brand.", "Ottilie Brand keeps the key of it.", 0),
    ("What does the mill grind?", "Wheat and rye.", "The mill grinds wheat and rye.", 1),
    ("How many villages?", "Nine.", "The mill grinds wheat and rye.", 1),
]


@pytest.fixture
def material(tmp_path: Path) -> Path:
    path = tmp_path / "material.jsonl"
    lines = [
        {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "document": text,
            "passage": passage,
            "kind": "question",
        }
        for question, answer, text, passage in ROWS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def batch_of(model: LoadedModel) -> Batch:
    """The rows as training reads them."""
    messages = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer, _, _ in ROWS
    ]
    made = Reader("conversations", model.tokenizer, 4096).read([("row", {"messages": each}) for each in messages])
    texts = [examples[0].texts[0] for examples in made]
    lengths = torch.tensor([len(text.ids) - 1 for text in texts])
    inputs = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, text in enumerate(texts):
        ids, trained = torch.as_tensor(text.ids).long(), torch.as_tensor(text.trained).bool()
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(trained[1:], ids[1:], IGNORED)
    return Batch(inputs, targets, lengths)


def table_of(model: LoadedModel, material: Path, rows: int = 2, top_k: int = 300) -> TeacherTable:
    work = teacher_table(model.model, read_answers(material, model.tokenizer), rows, top_k)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def prepared(model: LoadedModel, material: Path, top_k: int = 300) -> tuple:
    """(the objective after `begin`, its batch)."""
    objective = OBJECTIVES["document"](OBJECTIVES["document"].Config(document="x", top_k=top_k))
    setup = ObjectiveSetup(model.model, model.tokenizer, ExecutionContext(), 2, 512, [str(material)])
    list(objective.begin(setup))
    return objective, objective.prepare(model.model, batch_of(model))


def test_predictions_are_those_after_the_whole_prompt(sensitive, material):
    model = LoadedModel.load(sensitive)
    batch = batch_of(model)
    targets = table_of(model, material).batch(batch.inputs, batch.targets, batch.lengths)
    for row, (question, _, text, _) in enumerate(ROWS):
        where = batch.targets[row] != IGNORED
        answer = batch.targets[row][where].tolist()
        prompt = model.tokenizer.encode(f"{text}\n\nUser: {question}\nAssistant:")
        with torch.no_grad():
            logits = model.model(torch.tensor([[*prompt, *answer]]))[0][0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        ids = targets.ids[row][where]
        torch.testing.assert_close(targets.log_p[row][where], expected.gather(-1, ids), atol=1e-5, rtol=1e-4)


def test_the_adapter_does_not_change_the_teacher(sensitive, material):
    model = LoadedModel.load(sensitive)
    batch = batch_of(model)
    plain = table_of(model, material, top_k=8).batch(batch.inputs, batch.targets, batch.lengths)
    adapter = new_adapter(model.model, LoraSpec(rank=2))
    for change in adapter.maps.values():
        change.lora_B.normal_()
    attach(model.model, adapter, trainable=True)
    _, batch = prepared(model, material, top_k=8)
    assert torch.equal(batch.token_extras["teacher_log_p"], plain.log_p)
    assert torch.equal(batch.token_extras["teacher_ids"], plain.ids)
    assert any("lora_A" in name for name, _ in model.model.named_parameters())  # and it is attached again


def test_the_loss_is_the_divergence_from_the_teacher(sensitive, material):
    model = LoadedModel.load(sensitive)
    objective, batch = prepared(model, material)
    loss = objective(model.model, batch, ObjectiveContext())
    logits = model.model(batch.inputs, None, batch.lengths)[0]
    expected, count = 0.0, 0
    for row, (question, _, text, _) in enumerate(ROWS):
        where = batch.targets[row] != IGNORED
        answer = batch.targets[row][where].tolist()
        prompt = model.tokenizer.encode(f"{text}\n\nUser: {question}\nAssistant:")
        p = model.model(torch.tensor([[*prompt, *answer]]))[0][0, len(prompt) - 1 : -1].log_softmax(-1)
        expected += float((p.exp() * (p - logits[row][where].log_softmax(-1))).sum())
        count += len(answer)
    assert int(loss.scored) == objective.count(batch) == count
    assert expected > 0.1  # the passage matters
    assert float(loss.total) == pytest.approx(expected, rel=1e-3)


def test_the_teacher_reads_once(sensitive, material):
    model = LoadedModel.load(sensitive)
    reference = prepared(model, material)[1].token_extras["teacher_log_p"]
    with torch.no_grad():
        model.model.head.weight.mul_(2)
    again = prepared(model, material)[1].token_extras["teacher_log_p"]  # from its file
    assert torch.equal(again, reference)
    (file,) = material.parent.glob("material.*.safetensors")
    file.unlink()
    assert not torch.equal(prepared(model, material)[1].token_extras["teacher_log_p"], reference)


def test_a_row_of_other_data_is_refused(sensitive, material):
    model = LoadedModel.load(sensitive)
    objective, batch = prepared(model, material)
    with pytest.raises(InputError, match="not of the document's material"):
        objective.prepare(model.model, batch._replace(inputs=batch.inputs + 1))
