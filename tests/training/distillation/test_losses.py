"""The losses of the three stages, against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.training.distillation import losses
from synthe_core.training.distillation.divergence import divergence, targets_of
from synthe_core.training.distillation.initialise import initialise_from_teacher
from synthe_core.training.distillation.layers import (
    attention_of,
    matrix_of,
    read_teacher,
    replaced_layers,
    student_pass,
)
from tests.training.distillation.models import ATTENTION, LEARNERS, student, teacher, tokens


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "rwkv7"])
def test_layers_are_trained_apart(name: str) -> None:
    """The gradient of a layer is that of its own distance, and reaches no other parameter."""
    model, own = teacher(), student(LEARNERS[name])
    initialise_from_teacher(own, model)
    layers = replaced_layers(own, model)
    readings, _ = read_teacher(model, layers, tokens())
    for loss in (losses.orientation, losses.alignment):
        distances = loss(layers, readings)
        assert distances.shape == (3,) and (distances > 0).all()
        own.zero_grad(set_to_none=True)
        distances[1].backward()
        touched = {key for key, p in own.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert touched and all(key.startswith("blocks.1.learners.0.") for key in touched)


def test_orientation_is_a_mean_of_frobenius_norms() -> None:
    model, own = teacher(), student(LEARNERS["mamba2"])
    layers = replaced_layers(own, model)
    readings, _ = read_teacher(model, layers, tokens(3, 10))
    matrix = matrix_of(layers[2].student, student_pass(layers[2].student, readings[2].x)[1], 10)
    norms = [
        (matrix[row, head] - attention_of(readings[2])[row, head]).square().sum().sqrt()
        for row in range(3)
        for head in range(4)
    ]
    torch.testing.assert_close(losses.orientation(layers, readings)[2], torch.stack(norms).mean())


def test_rows_have_the_teachers_length_where_a_norm_follows() -> None:
    """The scale of queries changes neither what such a learner returns nor the distance."""
    model, own = teacher(), student(LEARNERS["gla"])
    initialise_from_teacher(own, model)
    layers = replaced_layers(own, model)
    readings, _ = read_teacher(model, layers, tokens(3, 10))
    before = losses.orientation(layers, readings), losses.alignment(layers, readings)
    with torch.no_grad():
        for layer in layers:
            layer.student.project.weight[:32] *= 7.0  # type: ignore[index, operator]
    torch.testing.assert_close(losses.orientation(layers, readings), before[0])
    torch.testing.assert_close(losses.alignment(layers, readings), before[1], rtol=1e-3, atol=1e-3)
    lengths = torch.stack([attention_of(reading).norm(dim=(-2, -1)).mean() for reading in readings])
    assert (before[0] < 2 * lengths).all()


def test_alignment_of_the_teachers_own_attention_is_zero() -> None:
    model, own = teacher(), student(ATTENTION)
    initialise_from_teacher(own, model)
    spare = student(LEARNERS["gla"])  # names the places
    layers = [
        layer._replace(student=own.blocks[number].learners[0])
        for number, layer in enumerate(replaced_layers(spare, model))
    ]
    readings, _ = read_teacher(model, layers, tokens())
    torch.testing.assert_close(losses.alignment(layers, readings), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage,steps", [("orientation", 30), ("alignment", 30)])
def test_a_stage_lowers_its_loss(stage: str, steps: int) -> None:
    model, own = teacher(torch.float32), student(LEARNERS["gla"], dtype=torch.float32)
    initialise_from_teacher(own, model)
    layers = replaced_layers(own, model)
    optimizer = torch.optim.AdamW(own.parameters(), 1e-2)
    readings, _ = read_teacher(model, layers, tokens(4))
    values = []
    for _ in range(steps):
        loss = getattr(losses, stage)(layers, readings)
        values.append(float(loss.detach().sum()))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


def test_other_numbers_of_heads_cannot_be_compared() -> None:
    model, own = teacher(), student({"type": "gla", "heads": 2})
    layers = replaced_layers(own, model)
    readings, _ = read_teacher(model, layers, tokens())
    with pytest.raises(InputError, match=r"gla of blocks\.0\.0 has 2 heads, and the teacher's attention 4"):
        losses.orientation(layers, readings)
    assert torch.isfinite(losses.alignment(layers, readings)).all()


@pytest.mark.parametrize("top_k", [None, 6])
def test_predictions_in_chunks_are_those_of_the_whole(top_k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = teacher(), student(LEARNERS["gla"])
    initialise_from_teacher(own, model)
    text = tokens(2, 11)
    targets = text.roll(-1, 1).masked_fill(torch.arange(11) == 10, -100)
    logits = model(text)[0].detach()

    def gradients() -> tuple[losses.Predictions, torch.Tensor]:
        own.zero_grad(set_to_none=True)
        hidden, _, _ = own.hidden(text)
        result = losses.prediction_losses(
            own, hidden, targets, lambda chunk: targets_of(logits[:, chunk], 2.0, top_k), 2.0, "reverse"
        )
        (result.divergence + 0.3 * result.cross_entropy).backward()
        return result, own.blocks[0].learners[0].project.weight.grad.clone()

    whole, expected = gradients()
    monkeypatch.setattr(losses, "MAX_LOGITS", 2 * 50 * 3)
    chunked, actual = gradients()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(actual, expected)
    mine = own(text)[0]
    nats = F.cross_entropy(mine.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100).view(2, 11)
    torch.testing.assert_close(whole.each, nats.detach())
    apart = divergence(mine, targets_of(logits, 2.0, top_k), 2.0, "reverse")[:, :10]
    torch.testing.assert_close(whole.divergence, apart.sum())
