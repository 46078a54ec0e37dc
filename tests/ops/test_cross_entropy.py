import pytest
import torch

from synthe_core.ops import cross_entropy
from synthe_core.ops.cross_entropy import linear_cross_entropy


def problem(vocab=37, time=29):
    torch.manual_seed(0)
    hidden = torch.randn(3, time, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, vocab, (3, time))
    targets[1, 5:] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 37 * 10, 1 << 20])
def test_chunked_equals_the_reference(chunk_bytes, cap, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_bytes)
    results = []
    for kernel in ("reference", "chunked"):
        hidden, weight, targets = problem()
        total, each, verdict = linear_cross_entropy.named(kernel)(hidden, weight, targets, True, cap)
        (1.7 * total).backward()
        results.append((total.detach(), each, hidden.grad, weight.grad, *verdict))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("with_total", [False, True])
def test_each_token_may_carry_a_gradient(with_total, cap, frozen, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 37 * 10)
    factors = torch.linspace(-1, 2, 3 * 29, dtype=torch.float64).view(3, 29)
    results = []
    for kernel in ("reference", "chunked"):
        hidden, weight, targets = problem()
        used = weight.detach() if frozen else weight
        total, each, _ = linear_cross_entropy.named(kernel)(hidden, used, targets, False, cap, True)
        assert torch.equal(total, each.sum()) or torch.allclose(total, each.sum())
        ((each * factors).sum().exp() + (0.3 * total if with_total else 0)).backward()
        results.append((each.detach(), hidden.grad, *([] if frozen else [weight.grad])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_each_token_is_computed_as_the_pass_was():
    """In autocast's type, though the backward pass runs outside of it."""
    hidden, weight, targets = problem()
    hidden, weight = (x.detach().float().requires_grad_() for x in (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        each = linear_cross_entropy(hidden, weight, targets, per_token=True)[1]
        expected = linear_cross_entropy(hidden, weight, targets)[0]
    slopes = [torch.autograd.grad(value, weight)[0] for value in (each.sum(), expected)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_unscored_tokens_cost_nothing():
    hidden, weight, targets = problem()
    total, each, verdict = linear_cross_entropy(hidden, weight, targets)
    assert verdict is None
    assert (each[1, 5:] == 0).all() and (each[0] > 0).all()
    torch.testing.assert_close(total, each.sum())
    total.backward()
    assert hidden.grad[1, 5:].abs().max() == 0


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets = problem()
    total, *_ = linear_cross_entropy(hidden, weight.detach(), targets)
    total.backward()
    assert torch.isfinite(hidden.grad).all()


def test_under_autocast_the_loss_stays_close():
    hidden, weight, targets = problem()
    exact = linear_cross_entropy(hidden, weight, targets)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = linear_cross_entropy(hidden.float(), weight.float(), targets)[0]
    assert narrow.dtype == torch.float32
    assert abs(narrow.item() / exact.item() - 1) < 0.01


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
def test_right_is_where_the_likeliest_token_is_the_target(kernel, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 37 * 10)
    hidden, weight, targets = problem()
    max_logprob, likeliest = (hidden @ weight.T).log_softmax(-1).max(-1)
    targets[0] = likeliest[0]
    targets[2, 3] = likeliest[2, 3]
    _, _, (right, said) = linear_cross_entropy.named(kernel)(hidden, weight, targets, True)
    assert right.shape == targets.shape and not right.requires_grad and not said.requires_grad
    torch.testing.assert_close(said, torch.where(targets < 0, 0.0, max_logprob))
    assert torch.equal(right, likeliest == targets)
    assert right[0].all() and right[2, 3] and not right[1, 5:].any()
