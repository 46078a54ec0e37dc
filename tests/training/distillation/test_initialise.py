"""A student's first weights: what is copied, and how linear learners begin."""

from __future__ import annotations

import pytest
import torch

from synthe_core.training.distillation.initialise import COPIES, initialise_from_teacher, time_constants
from synthe_core.training.distillation.layers import matrix_of, read_teacher, replaced_layers, student_pass
from synthe_core.training.distillation.losses import orientation
from tests.training.distillation.models import ATTENTION, LEARNERS, student, teacher, tokens


def test_a_student_with_the_teachers_attention_is_the_teacher() -> None:
    model, copy = teacher(), student(ATTENTION)
    initialise_from_teacher(copy, model)
    torch.testing.assert_close(copy(tokens())[0], model(tokens())[0])


def test_every_copy_is_tested() -> None:
    assert {keys["type"] for keys in LEARNERS.values()} | {"delta_memory"} == set(COPIES)


def test_attention_in_a_window_has_all_of_the_teachers_weights() -> None:
    model, copy = teacher(), student({**ATTENTION, "window": 24})
    initialise_from_teacher(copy, model)
    torch.testing.assert_close(copy(tokens())[0], model(tokens())[0])  # the text fits into the window
    layers = replaced_layers(copy, model)
    readings, _ = read_teacher(model, layers, tokens())
    torch.testing.assert_close(orientation(layers, readings), torch.zeros(3, dtype=torch.float64))
    assert not torch.allclose(copy(tokens(2, 40))[0], model(tokens(2, 40))[0])


@pytest.mark.parametrize("name", LEARNERS)
def test_everything_but_attention_is_copied(name: str) -> None:
    model, copy = teacher(), student(LEARNERS[name], ATTENTION)
    initialise_from_teacher(copy, model)
    theirs = dict(model.named_parameters())
    for key, parameter in copy.named_parameters():
        if key.startswith(("blocks.0.learners.0.", "blocks.2.learners.0.")):
            continue
        torch.testing.assert_close(parameter, theirs[key], msg=key)


@pytest.mark.parametrize("name", LEARNERS)
def test_values_are_the_teachers(name: str) -> None:
    """What a learner writes: the teacher's values of its group, behind SiLU where the learner has one."""
    model, copy = teacher(), student(LEARNERS[name])
    initialise_from_teacher(copy, model)
    layers = replaced_layers(copy, model)
    readings, _ = read_teacher(model, layers, tokens())
    for layer, reading in zip(layers, readings, strict=True):
        expected = reading.call.call.arguments["v"].repeat_interleave(2, 2)
        if name == "rwkv7":
            torch.testing.assert_close(layer.student.value(reading.x).unflatten(-1, (4, 8)), expected)
            continue
        written = student_pass(layer.student, reading.x)[1][0].call.arguments["v"]
        if name == "delta two steps":
            written = written[:, ::2]
        linear = name in ("gla", "fast_weights", "mlstm")
        torch.testing.assert_close(written, expected if linear else torch.nn.functional.silu(expected))


@pytest.mark.parametrize("name", ["gla", "mamba2", "kda", "delta", "mlstm"])
def test_decays_are_slow_and_the_same_at_every_token(name: str) -> None:
    model, copy = teacher(), student(LEARNERS[name])
    initialise_from_teacher(copy, model)
    layer = replaced_layers(copy, model)[0]
    calls = student_pass(layer.student, torch.randn(1, 6, 32, dtype=torch.float64))[1]
    decay = calls[0].call.arguments["log_forget" if name == "mlstm" else "log_decay"]
    decay = decay.flatten(3).mean(-1) if decay.dim() == 4 else decay
    constants = time_constants(2).repeat_interleave(2) if name == "gla" else time_constants(4)
    torch.testing.assert_close((-1 / decay), constants.double().expand_as(decay), rtol=1e-5, atol=0)
    assert (time_constants(4)[0], time_constants(4)[-1]) == (32, 1024)


def test_a_mixing_matrix_begins_as_large_as_an_attention_matrix() -> None:
    """Rows of a softmax sum to one; so do those of |M|, within a factor of a few."""
    model, copy = teacher(), student(LEARNERS["mamba2"])
    initialise_from_teacher(copy, model)
    layers = replaced_layers(copy, model)
    readings, _ = read_teacher(model, layers, tokens(2, 200))
    for layer, reading in zip(layers, readings, strict=True):
        matrix = matrix_of(layer.student, student_pass(layer.student, reading.x)[1], 200)
        sums = matrix.detach().abs().sum(-1)[..., 100:].mean()
        assert 0.05 < float(sums) < 5


@pytest.mark.parametrize("name", LEARNERS)
def test_every_student_runs(name: str) -> None:
    copy = student(LEARNERS[name], dtype=torch.float32)
    initialise_from_teacher(copy, teacher(torch.float32))
    logits = copy(tokens())[0]
    assert torch.isfinite(logits).all()
    logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in copy.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["gla", "delta", "kda", "mamba2"])
def test_readings_begin_no_larger_than_the_teachers(name: str) -> None:
    model, copy = teacher(), student(LEARNERS[name])
    initialise_from_teacher(copy, model)
    layers = replaced_layers(copy, model)
    readings, _ = read_teacher(model, layers, tokens(2, 100))
    for layer, reading in zip(layers, readings, strict=True):
        mine = student_pass(layer.student, reading.x)[0].detach()
        assert 0 < float(mine.norm()) < 2 * float(reading.y.norm())


def test_maps_of_other_sizes_keep_their_initial_values() -> None:
    model = teacher()
    copy = student({"type": "gla", "heads": 2, "key_size": 8, "value_size": 8})
    before = copy.blocks[0].learners[0].project.weight.clone()
    initialise_from_teacher(copy, model)
    after = copy.blocks[0].learners[0].project.weight
    assert torch.equal(after[:16], before[:16])  # two heads of queries, where the teacher has four
    assert not torch.equal(after[16:32], before[16:32])  # two of keys, as it has
