"""The linear scan, and the gated average built on the same recurrence: every kernel against the reference."""

import dataclasses

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.linear_scan.fla import fla

KERNELS = [(linear_scan, "blocked"), (linear_scan, "native"), (gated_average, "composed"), (gated_average, "native")]
each_kernel = pytest.mark.parametrize("op,name", KERNELS, ids=lambda value: getattr(value, "name", value))


@pytest.fixture(autouse=True)
def kernel_that_runs_here(request):
    if "name" in request.fixturenames and request.getfixturevalue("name") == "native" and probe().compiler is None:
        pytest.skip("no C compiler")


def arguments(op, batch, time, width, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    first = 3 * torch.randn(batch, time, width, dtype=dtype)
    first = torch.sigmoid(first) if op is linear_scan else first
    return first, torch.randn(batch, time, width, dtype=dtype), torch.randn(batch, width, dtype=dtype)


def outcome(fn, given):
    """h, last and the gradients of everything for a fixed random projection of both."""
    given = [None if tensor is None else tensor.clone().requires_grad_() for tensor in given]
    h, last = fn(*given)
    torch.manual_seed(1)
    loss = sum((each * torch.randn(each.shape, dtype=torch.float64).to(each)).sum() for each in (h, last))
    return [h, last, *torch.autograd.grad(loss, [tensor for tensor in given if tensor is not None])]


@each_kernel
@pytest.mark.parametrize("time", [1, 2, 7, 63, 65, 130])
@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("fresh", [False, True])
def test_equals_the_reference_in_outputs_state_and_gradients(op, name, time, width, fresh):
    given = arguments(op, 3, time, width)
    given = (*given[:2], None) if fresh else given
    for actual, expected in zip(outcome(op.named(name), given), outcome(op.reference, given), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@each_kernel
@pytest.mark.parametrize("cut", [1, 2, 31, 64, 70])
def test_any_split_is_the_same_scan(op, name, cut):
    first, value, state = arguments(op, 2, 71, 9)
    whole, final = op.reference(first, value, state)
    kernel = op.named(name)
    head, middle = kernel(first[:, :cut], value[:, :cut], state)
    tail, last = kernel(first[:, cut:], value[:, cut:], middle)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, final, rtol=1e-12, atol=1e-12)


@each_kernel
def test_views_and_expanded_gradients_are_read_as_they_are(op, name):
    first, value, state = arguments(op, 3, 20, 9)
    given = [first.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([value, value], -1)[..., :9], state]
    slopes = []
    for kernel in (op.named(name), op.reference):
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        slopes.append(torch.autograd.grad(kernel(*leaves)[0].sum(), leaves))  # the gradient of a sum has stride 0
    for actual, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@each_kernel
def test_float32_stays_near_float64(op, name):
    given = arguments(op, 2, 1024, 32, dtype=torch.float32)
    exact = outcome(op.reference, [tensor.double() for tensor in given])
    for actual, expected in zip(outcome(op.named(name), given), exact, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["blocked", "native"])
@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decays_of_zero_and_one_keep_their_gradients(name, decay, dtype):
    _, value, state = arguments(linear_scan, 2, 200, 6, dtype=dtype)
    given = (torch.full_like(value, decay), value, state)
    exact = outcome(linear_scan.reference, [tensor.double() for tensor in given])
    for actual, expected in zip(outcome(linear_scan.named(name), given), exact, strict=True):
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-10)
    assert exact[2].abs().max() > 0  # the gradient of the decay, also where it is 0


@pytest.mark.parametrize("name", ["composed", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_of_any_size_are_finite_and_infinite_ones_hold(name, dtype):
    gates = torch.tensor([-torch.inf, -1e4, -750.0, -88.0, -87.0, -20.0, -0.0, 20.0, 87.0, 88.0, 750.0, 1e4, torch.inf])
    gate = gates.to(dtype).expand(2, 9, -1)
    value, state = torch.randn(2, 9, 13, dtype=dtype), torch.randn(2, 13, dtype=dtype)
    actual = outcome(gated_average.named(name), (gate, value, state))
    assert all(torch.isfinite(tensor).all() for tensor in actual)
    assert torch.equal(actual[0][..., -1], state[:, None, -1].expand(-1, 9))  # gate +inf: untouched to the last bit
    assert torch.equal(actual[0][..., 0], value[..., 0])
    assert actual[3][..., -1].abs().max() == 0
    zero = gated_average.named(name)(gate, value, torch.zeros_like(state))[1]
    assert zero[:, -1].abs().max() == 0


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 3e-7), (torch.float64, 5e-16)])
def test_the_exponential_of_the_native_gates_is_accurate(dtype, tolerance):
    gate = torch.linspace(-80, 80, 20001, dtype=dtype)[None, None]
    one, zero = torch.ones_like(gate), torch.zeros_like(gate)
    keep = gated_average.named("native")(gate, zero, one[:, 0])[0]
    take = gated_average.named("native")(gate, one, zero[:, 0])[0]
    for actual, sign in ((keep, 1), (take, -1)):
        exact = torch.sigmoid(sign * gate.double())
        assert ((actual.double() - exact).abs() / exact).max() < tolerance + 3e-16


def test_infinity_and_nan_are_not_hidden():
    gate = torch.tensor([[[0.0, torch.nan]]])
    h, _ = gated_average.named("native")(gate, torch.tensor([[[torch.inf, 1.0]]]), torch.zeros(1, 2))
    assert torch.isinf(h[0, 0, 0]) and torch.isnan(h[0, 0, 1])


@pytest.mark.parametrize("op,name", [*KERNELS, (linear_scan, "reference"), (gated_average, "reference")])
def test_half_precision_is_refused(op, name):
    given = [tensor.bfloat16() for tensor in arguments(op, 1, 3, 4)]
    with pytest.raises(InputError, match="must be float32 or float64"):
        op.named(name)(*given)


def test_fla_refuses_with_a_reason():
    first, value, state = arguments(linear_scan, 1, 8, 4, dtype=torch.float32)
    call = Call.of({"decay": first, "value": value, "state": state})
    bare = Hardware(device="cuda", processor="", cores=1, memory=1)
    whole = dataclasses.replace(bare, libraries={"fla-core": "0.4", "triton": "3.4"})
    on_gpu = dataclasses.replace(call, device="cuda")
    assert "tensors are on cpu" in fla.refusal(whole, call)
    assert "fla-core and triton not installed" in fla.refusal(bare, on_gpu)
    assert "float64" in fla.refusal(whole, dataclasses.replace(on_gpu, dtype=torch.float64))
    assert "single step" in fla.refusal(whole, dataclasses.replace(on_gpu, time=1))
    assert fla.refusal(whole, on_gpu) is None


def test_without_a_compiler_the_blocked_scan_serves():
    first, value, state = arguments(linear_scan, 1, 8, 4)
    bare = Hardware(device="cpu", processor="", cores=1, memory=1)
    choices = linear_scan.explain(Call.of({"decay": first, "value": value, "state": state}), bare)
    assert [choice.kernel for choice in choices if choice.chosen] == ["blocked"]
    assert "no C compiler" in next(choice.reason for choice in choices if choice.kernel == "native")
