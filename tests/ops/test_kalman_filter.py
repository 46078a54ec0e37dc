"""The Kalman filter: parallel and compiled forms against the sequential one, and that against a textbook."""

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.kalman_filter import kalman_filter

NAMES = ["parallel", "native"]
OUTPUTS = ["mean", "variance", "surprise", "confidence"]
INPUTS = ["observation", "transition", "process_noise", "observation_noise", "mean", "variance"]
each_kernel = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def kernel_that_runs_here(request):
    if "name" in request.fixturenames and request.getfixturevalue("name") == "native" and probe().compiler is None:
        pytest.skip("no C compiler")


def arguments(batch, time, width, per_token=False, dtype=torch.float64):
    torch.manual_seed(0)
    shape = (batch, time, width) if per_token else (width,)
    given = [
        torch.randn(batch, time, width, dtype=dtype),
        torch.rand(shape, dtype=dtype),
        torch.rand(shape, dtype=dtype),
        torch.rand(batch, time, width, dtype=dtype) + 0.01,
        torch.randn(batch, width, dtype=dtype),
        torch.rand(batch, width, dtype=dtype),
    ]
    return given, torch.rand(batch, time) > 0.3


def outcome(fn, given, active=None, outputs=OUTPUTS):
    """Every output and the gradient of every input for a fixed random projection of `outputs`, by name."""
    given = [tensor.clone().requires_grad_() for tensor in given]
    filtered = fn(*given, active)
    torch.manual_seed(1)
    chosen = [getattr(filtered, name) for name in outputs]
    loss = sum((each * torch.randn(each.shape, dtype=torch.float64).to(each)).sum() for each in chosen)
    slopes = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
    return filtered._asdict() | {f"d {name}": slope for name, slope in zip(INPUTS, slopes, strict=True)}


def assert_same(actual, expected, relative):
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        error = (actual[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert error <= relative, f"{name}: relative error {error:.1e}"


def test_the_reference_is_the_filter_of_the_textbooks():
    given, _ = arguments(1, 12, 1)
    z, a, q, r, mean, variance = given
    filtered = kalman_filter.reference(*given)
    # Joint covariance of x_0..x_11 and z_0..z_11, conditioned by linear algebra instead of a recursion.
    time = 12
    prior = torch.zeros(time, time, dtype=torch.float64)
    spread = [a[0] ** 2 * variance[0, 0] + q[0]]
    for _ in range(time - 1):
        spread.append(a[0] ** 2 * spread[-1] + q[0])
    for i in range(time):
        for j in range(time):
            prior[i, j] = a[0] ** abs(i - j) * spread[min(i, j)]
    expected = mean[0, 0] * a[0] ** torch.arange(1, time + 1)
    for t in range(time):
        seen = prior[: t + 1, : t + 1] + torch.diag(r[0, : t + 1, 0])
        weights = torch.linalg.solve(seen, prior[: t + 1, t])
        posterior = expected[t] + weights @ (z[0, : t + 1, 0] - expected[: t + 1])
        torch.testing.assert_close(filtered.mean[0, t, 0], posterior, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            filtered.variance[0, t, 0], prior[t, t] - weights @ prior[: t + 1, t], rtol=1e-10, atol=1e-12
        )


@each_kernel
@pytest.mark.parametrize("time", [1, 2, 7, 63, 65, 130])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_reference_in_outputs_and_gradients(name, time, per_token, masked):
    given, active = arguments(3, time, 11, per_token)
    active = active if masked else None
    expected = outcome(kalman_filter.reference, given, active)
    assert_same(outcome(kalman_filter.named(name), given, active), expected, 1e-12)


@each_kernel
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_of_one_output_alone(name, output):
    given, active = arguments(2, 37, 300)  # wider than a block of the C code
    expected = outcome(kalman_filter.reference, given, active, [output])
    assert_same(outcome(kalman_filter.named(name), given, active, [output]), expected, 1e-12)


@each_kernel
def test_transition_and_noise_may_be_of_different_kinds(name):
    (z, a, q, r, mean, variance), _ = arguments(2, 19, 5)
    given = [z, a, q.expand(2, 19, 5).contiguous(), r, mean, variance]
    assert_same(outcome(kalman_filter.named(name), given), outcome(kalman_filter.reference, given), 1e-12)


@each_kernel
@pytest.mark.parametrize("cut", [1, 2, 31, 64, 70])
def test_any_split_is_the_same_filter(name, cut):
    (z, a, q, r, mean, variance), active = arguments(2, 71, 5)
    whole = kalman_filter.reference(z, a, q, r, mean, variance, active)
    kernel = kalman_filter.named(name)
    head = kernel(z[:, :cut], a, q, r[:, :cut], mean, variance, active[:, :cut])
    tail = kernel(z[:, cut:], a, q, r[:, cut:], head.mean[:, -1], head.variance[:, -1], active[:, cut:])
    for one, other, expected in zip(head, tail, whole, strict=True):
        torch.testing.assert_close(torch.cat([one, other], 1), expected, rtol=1e-12, atol=1e-12)


@each_kernel
def test_float32_stays_near_the_sequential_filter_in_float64(name):
    given, _ = arguments(2, 1024, 32, dtype=torch.float32)
    exact = outcome(kalman_filter.reference, [tensor.double() for tensor in given])
    actual = outcome(kalman_filter.named(name), given)
    assert_same({key: value.double() for key, value in actual.items()}, exact, 3e-6)
    assert_same({key: actual[key].double() for key in OUTPUTS}, {key: exact[key] for key in OUTPUTS}, 1e-6)


EXTREMES = {
    "forgets": {"a": 0.0},
    "keeps": {"a": 1.0},
    "certain": {"q": 0.0},
    "certain, no decay": {"a": 1.0, "q": 0.0},
    "certain, no memory": {"a": 0.0, "q": 0.0},
    "large noise": {"r": 1e6},
    "credulous": {"r": 1e-6},
    "credulous and certain": {"r": 1e-6, "q": 0.0, "a": 1.0},
    "certain start, small noise": {"r": 1e-6, "q": 0.0, "variance": 0.0},
    "deaf and noisy": {"r": 1e6, "q": 1e4},
    "credulous and noisy": {"r": 1e-6, "q": 1e4},
}


@each_kernel
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype,relative", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_extreme_settings_are_finite_and_exact(name, extreme, dtype, relative):
    (z, a, q, r, mean, variance), _ = arguments(2, 130, 7, dtype=dtype)
    chosen = EXTREMES[extreme]
    given = [
        z,
        torch.full_like(a, chosen["a"]) if "a" in chosen else a,
        torch.full_like(q, chosen["q"]) if "q" in chosen else q,
        torch.full_like(r, chosen["r"]) if "r" in chosen else r,
        mean,
        torch.full_like(variance, chosen["variance"]) if "variance" in chosen else variance,
    ]
    exact = outcome(kalman_filter.reference, [tensor.double() for tensor in given])
    actual = outcome(kalman_filter.named(name), given)
    assert all(torch.isfinite(value).all() for value in actual.values())
    assert (actual["variance"] >= 0).all()
    assert_same({key: value.double() for key, value in actual.items()}, exact, relative)


@each_kernel
def test_nothing_active_leaves_the_filter_to_the_last_bit(name):
    (z, a, q, r, mean, variance), _ = arguments(2, 66, 5, dtype=torch.float32)
    filtered = kalman_filter.named(name)(z, a, q, r, mean, variance, torch.zeros(2, 66, dtype=torch.bool))
    assert torch.equal(filtered.mean, mean[:, None].expand_as(z))
    assert torch.equal(filtered.variance, variance[:, None].expand_as(z))
    assert filtered.surprise.abs().max() == 0 and (filtered.confidence == 1).all()


def test_surprise_is_one_when_the_model_is_true():
    torch.manual_seed(0)
    time, width = 400, 50
    a, q = torch.full((width,), 0.9, dtype=torch.float64), torch.full((width,), 0.2, dtype=torch.float64)
    x, z = torch.zeros(1, width, dtype=torch.float64), []
    for _ in range(time):
        x = a * x + q.sqrt() * torch.randn_like(x)
        z.append(x + 0.5 * torch.randn_like(x))
    observed = torch.stack(z, 1)
    noise = torch.full_like(observed, 0.25)
    filtered = kalman_filter(observed, a, q, noise, torch.zeros_like(x), torch.zeros_like(x))
    assert abs(filtered.surprise.mean().item() - 1) < 4 * (2 / (time * width)) ** 0.5
    shocked = observed.clone()
    shocked[:, 200] += 5
    again = kalman_filter(shocked, a, q, noise, torch.zeros_like(x), torch.zeros_like(x))
    assert again.surprise[0, 200] > 10 * filtered.surprise.max()
    assert torch.equal(again.surprise[:, :200], filtered.surprise[:, :200])


@pytest.mark.parametrize("name", [*NAMES, "reference"])
def test_bad_arguments_are_refused_in_words(name):
    (z, a, q, r, mean, variance), _ = arguments(1, 4, 3)
    with pytest.raises(InputError, match="must be float32 or float64"):
        kalman_filter.named(name)(z.half(), a.half(), q.half(), r.half(), mean.half(), variance.half())
    with pytest.raises(InputError, match=r"transition is \[1\], not \[3\] or \[1, 4, 3\]"):
        kalman_filter.named(name)(z, a[:1], q, r, mean, variance)


def test_without_a_compiler_the_parallel_form_serves():
    given, _ = arguments(1, 8, 3)
    bare = Hardware(device="cpu", processor="", cores=1, memory=1)
    choices = kalman_filter.explain(Call.of(dict(zip(INPUTS, given, strict=True))), bare)
    assert [choice.kernel for choice in choices if choice.chosen] == ["parallel"]
    assert "no C compiler" in next(choice.reason for choice in choices if choice.kernel == "native")
