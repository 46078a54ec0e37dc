"""What a student's layers take the place of, and their mixing matrices as parts of the learners' outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers import LAYERS, build, parse
from synthe_core.training.distillation.layers import (
    attention_of,
    check_student,
    matrix_of,
    read_teacher,
    replaced_layers,
    student_pass,
)
from tests.laws.entries import VARIANTS, WIDTH
from tests.training.distillation.models import ATTENTION, LEARNERS, spec, student, teacher, tokens

LINEAR = (
    *("delta", "delta_memory", "fast_weights", "gla", "hgrn2", "kda", "lightning_attention", "mamba2", "mlstm"),
    *("gated_delta_2", "retention", "rwkv7"),
)
CASES = [(name, keys) for name in LINEAR for keys in VARIANTS.get(name, [{}])]


@pytest.mark.parametrize("name,keys", CASES, ids=[f"{name}-{n}" for n, (name, _) in enumerate(CASES)])
def test_every_linear_learner_has_a_matrix_that_is_causal_and_has_gradients(name: str, keys: dict[str, Any]) -> None:
    if keys.get("values") == "mix":
        pytest.skip("it reads another layer's values")
    torch.manual_seed(0)
    learner = build(parse({"type": name, **keys}), WIDTH).double()
    _, calls = student_pass(learner, torch.randn(2, 21, WIDTH, dtype=torch.float64))
    matrix = matrix_of(learner, calls, 21)
    assert matrix.shape == (2, calls[0].call.arguments["v"].shape[2], 21, 21)
    assert (matrix.triu(1) == 0).all()
    matrix.square().sum().backward()
    inputs = next(p for n, p in learner.named_parameters() if p.dim() == 2 and p.shape[1] == WIDTH)
    assert inputs.grad is not None and inputs.grad.abs().max() > 0


def values(calls: Any) -> torch.Tensor:
    return calls[0].call.arguments["v"].transpose(1, 2)


def outputs(read: torch.Tensor) -> torch.Tensor:
    return read.transpose(1, 2).flatten(2)


def test_the_matrix_times_the_values_gives_the_output_of_a_learner() -> None:
    """Of three that differ from their operator: by a factor, by a skip connection and by a shift of a token."""
    torch.manual_seed(0)
    x = torch.randn(2, 30, WIDTH, dtype=torch.float64)

    gla = build(parse({"type": "gla", "heads": 4, "kv_heads": 2, "gate": False}), WIDTH).double()
    y, calls = student_pass(gla, x)
    read = matrix_of(gla, calls, 30) @ values(calls)
    normed = F.rms_norm(read, read.shape[-1:], eps=gla.config.norm_eps) * gla.norm[:, None].T
    torch.testing.assert_close(gla.out(outputs(normed)), y)

    mamba2 = build(parse({"type": "mamba2", "heads": 4, "head_size": 8, "norm": "none"}), WIDTH).double()
    with torch.no_grad():
        mamba2.D.normal_()
    y, calls = student_pass(mamba2, x)
    gate = F.silu(mamba2.in_proj(x)[..., : mamba2.channels])
    torch.testing.assert_close(
        mamba2.out_proj(outputs(matrix_of(mamba2, calls, 30) @ values(calls)) * gate), y, rtol=1e-6, atol=1e-8
    )

    fast = build(parse({"type": "fast_weights", "heads": 4}), WIDTH).double()
    y, calls = student_pass(fast, x)
    torch.testing.assert_close(fast.out(outputs(matrix_of(fast, calls, 30) @ values(calls))), y)


def test_the_columns_of_several_steps_are_summed() -> None:
    torch.manual_seed(0)
    delta = build(parse({"type": "delta", "heads": 2, "householder": 2, "beta_range": [0, 2]}), WIDTH).double()
    _, calls = student_pass(delta, torch.randn(1, 9, WIDTH, dtype=torch.float64))
    arguments = calls[0].call.arguments
    same = torch.randn(1, 9, 1, 2, 16, dtype=torch.float64).expand(-1, -1, 2, -1, -1).flatten(1, 2)
    expected = calls[0].op.reference(**arguments | {"v": same})[0][:, 1::2]
    read = matrix_of(delta, calls, 9) @ same[:, 1::2].transpose(1, 2)
    torch.testing.assert_close(read.transpose(1, 2), expected)


@pytest.mark.parametrize("name", sorted(set(LAYERS) - set(LINEAR) - {"attention", "latent_attention"}))
def test_other_learners_have_no_matrix_and_say_so(name: str) -> None:
    torch.manual_seed(0)
    config = {"type": name, **VARIANTS.get(name, [{}])[0]}
    if LAYERS[name].reads(parse(config)) or not LAYERS[name].causal:
        pytest.skip("it reads what another learner publishes, or is an encoder's")
    learner = build(parse(config), WIDTH).double()
    _, calls = student_pass(learner, torch.randn(1, 8, WIDTH, dtype=torch.float64))
    with pytest.raises(InputError, match=f"{name} has no mixing matrix"):
        matrix_of(learner, calls, 8)


def test_a_reading_of_the_teacher_is_its_attention() -> None:
    model, text = teacher(window=7), tokens()
    layers = replaced_layers(student(LEARNERS["gla"]), model)
    readings, hidden = read_teacher(model, layers, text)
    torch.testing.assert_close(hidden, model.hidden(text)[0])
    for layer, reading in zip(layers, readings, strict=True):
        value = reading.call.call.arguments["v"].repeat_interleave(2, 2).transpose(1, 2)
        torch.testing.assert_close(layer.teacher.out(outputs(attention_of(reading) @ value)), reading.y)
        torch.testing.assert_close(student_pass(layer.teacher, reading.x)[0], reading.y)


def test_only_replaced_layers_are_listed() -> None:
    hybrid = student(LEARNERS["gla"], ATTENTION, LEARNERS["delta"])
    assert [layer.name for layer in replaced_layers(hybrid, teacher())] == ["blocks.0.0", "blocks.2.0"]
    readings, _ = read_teacher(teacher(), replaced_layers(hybrid, teacher()), tokens())
    assert readings == []  # hooks are on the model that the layers are of


@pytest.mark.parametrize(
    "change,message",
    [
        ({"width": 16}, "model.width of the student is 16, and of the teacher 32"),
        ({"blocks": 2}, "model.blocks of the student is 2"),
        ({"block": [[LEARNERS["gla"]]]}, "block 0 of the student has 1 learners, and of the teacher 2"),
        (
            {"block": [[LEARNERS["gla"], {"type": "mlp", "hidden": 32}]]},
            "learner 1 of the student is not the teacher's",
        ),
        (
            {"block": [[{**LEARNERS["gla"], "residual": {"scale": 0.5}}, {"type": "mlp", "hidden": 48}]]},
            "residual of gla",
        ),
    ],
)
def test_a_student_of_another_shape_is_refused(change: dict[str, Any], message: str) -> None:
    own = spec(LEARNERS["gla"]).model_dump(mode="json") | change
    with pytest.raises(InputError, match=message):
        check_student(type(spec(ATTENTION)).model_validate(own), spec(ATTENTION))
