from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.expert_mlp import expert_mlp

NAMES = ("x", "weight", "gate_up", "out")
needs_groups = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch multiplies no groups")


def arguments(batch, time, experts, top, width=8, hidden=12, dtype=torch.float64):
    """Tokens sent to `top` different experts each; the last expert is never chosen where there is a choice."""
    torch.manual_seed(batch * time)
    used = max(experts - 1, top)
    return {
        "x": torch.randn(batch, time, width, dtype=dtype),
        "chosen": torch.rand(batch, time, used).topk(top).indices,
        "weight": torch.randn(batch, time, top, dtype=dtype),
        "gate_up": torch.randn(experts, 2 * hidden, width, dtype=dtype),
        "out": torch.randn(experts, width, hidden, dtype=dtype),
    }


def outcome(kernel, arguments):
    """y, and the gradient of a fixed random projection of it with respect to everything but the choice."""
    given = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in arguments.items()}
    y = kernel(**given)
    torch.manual_seed(7)
    slopes = torch.autograd.grad((y * torch.randn(y.shape, dtype=torch.float64).to(y)).sum(), [given[n] for n in NAMES])
    return {"y": y.detach()} | dict(zip(NAMES, slopes, strict=True))


def assert_same(actual, expected, tolerance):
    for name, tensor in expected.items():
        error = (actual[name].double() - tensor.double()).abs().max() / tensor.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


def call(arguments):
    return Call.of(arguments)


def test_the_reference_is_its_equation():
    a = arguments(2, 5, experts=4, top=2)
    y = expert_mlp.reference(**a)
    for b in range(2):
        for t in range(5):
            expected = torch.zeros(8, dtype=torch.float64)
            for k in range(2):
                expert = a["chosen"][b, t, k]
                gate, up = a["gate_up"][expert, :12] @ a["x"][b, t], a["gate_up"][expert, 12:] @ a["x"][b, t]
                expected += a["weight"][b, t, k] * (a["out"][expert] @ (gate / (1 + (-gate).exp()) * up))
            torch.testing.assert_close(y[b, t], expected, rtol=1e-12, atol=1e-12)


SHAPES = [(1, 1, 2, 1), (1, 1, 8, 2), (2, 3, 5, 5), (3, 37, 4, 2), (1, 70, 16, 3), (2, 19, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sorted_equals_the_reference(shape):
    a = arguments(*shape)
    assert_same(outcome(expert_mlp.named("sorted"), a), outcome(expert_mlp.reference, a), 1e-13)


@pytest.mark.parametrize("kernel", ["sorted", pytest.param("grouped", marks=needs_groups)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
def test_experts_have_other_activations_and_no_gate(kernel, gated, activation):
    a = arguments(2, 19, experts=4, top=2, hidden=16, dtype=torch.float32)
    a["gate_up"] = a["gate_up"] if gated else a["gate_up"][:, :16].clone()
    options = {"activation": activation, "gated": gated}
    exact = {k: v.double() if v.is_floating_point() else v for k, v in a.items()}
    expected = outcome(partial(expert_mlp.reference, **options), exact)
    assert_same(outcome(partial(expert_mlp.named(kernel), **options), a), expected, 2e-6)


def test_the_reference_without_a_gate_is_its_equation():
    a = arguments(1, 3, experts=3, top=1)
    up = a["gate_up"][:, :12]
    y = expert_mlp.reference(**a | {"gate_up": up}, activation="relu2", gated=False)
    for t in range(3):
        expert, weight = a["chosen"][0, t, 0], a["weight"][0, t, 0]
        expected = weight * (a["out"][expert] @ (up[expert] @ a["x"][0, t]).clamp_min(0).square())
        torch.testing.assert_close(y[0, t], expected, rtol=1e-12, atol=1e-12)


@needs_groups
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grouped_equals_the_reference(shape, dtype, tolerance):
    a = arguments(*shape, hidden=16, dtype=dtype)
    assert expert_mlp.named("grouped").refusal(probe(), call(a)) is None
    exact = outcome(expert_mlp.reference, {k: v.double() if v.is_floating_point() else v for k, v in a.items()})
    assert_same(outcome(expert_mlp.named("grouped"), a), exact, tolerance)


@pytest.mark.parametrize("kernel", ["sorted", pytest.param("grouped", marks=needs_groups)])
def test_an_expert_without_tokens_gets_a_gradient_of_zero(kernel):
    a = arguments(2, 9, experts=5, top=2, hidden=16, dtype=torch.float32)
    assert (a["chosen"] < 4).all()
    actual = outcome(expert_mlp.named(kernel), a)
    assert actual["gate_up"][4].abs().max() == actual["out"][4].abs().max() == 0
    assert actual["gate_up"][:4].flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("kernel", ["sorted", pytest.param("grouped", marks=needs_groups)])
def test_all_tokens_may_go_to_one_expert_even_twice(kernel):
    a = arguments(2, 33, experts=4, top=2, hidden=16, dtype=torch.float32) | {"chosen": torch.full((2, 33, 2), 3)}
    exact = outcome(expert_mlp.reference, {k: v.double() if v.is_floating_point() else v for k, v in a.items()})
    assert_same(outcome(expert_mlp.named(kernel), a), exact, 2e-6)


@pytest.mark.parametrize("kernel", ["sorted", pytest.param("grouped", marks=needs_groups)])
def test_a_gradient_need_not_be_contiguous(kernel):
    a = arguments(2, 9, experts=3, top=2, hidden=16, dtype=torch.float32)
    x = a["x"].clone().requires_grad_()
    expert_mlp.named(kernel)(**a | {"x": x}).sum().backward()  # expands one number
    y = a["x"].clone().requires_grad_()
    expert_mlp.reference(**a | {"x": y}).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-4)


def test_only_what_was_chosen_is_computed():
    a = arguments(2, 32, experts=8, top=2, hidden=16, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        expert_mlp.named("sorted")(**a)
    assert counter.get_total_flops() == 2 * (2 * 32 * 2) * 3 * 8 * 16


def test_grouped_refuses_with_a_reason():
    refusal = expert_mlp.named("grouped").refusal
    if not hasattr(F, "grouped_mm"):
        assert "has no torch.nn.functional.grouped_mm" in refusal(probe(), call(arguments(1, 2, 3, 1)))
        return
    narrow = arguments(1, 2, 3, 1, hidden=6, dtype=torch.bfloat16)
    assert refusal(probe(), call(narrow)) == "the sizes of an expert must be multiples of 8 in torch.bfloat16"
    wide = arguments(1, 2, 3, 1)
    assert refusal(probe(), call(wide)) == "torch multiplies no groups of torch.float64 on cpu"
    askew = arguments(1, 2, 3, 1, dtype=torch.float32)
    askew["out"] = torch.randn(3 * 8 * 12 + 1)[1:].view(3, 8, 12)
    assert refusal(probe(), call(askew)) == "the weights do not begin at a multiple of 16 bytes"
