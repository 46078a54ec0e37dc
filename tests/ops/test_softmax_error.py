import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.softmax_error import softmax_error
from tests.conftest import needs_compiler


def problem(dtype):
    torch.manual_seed(0)
    logits = (6 * torch.randn(23, 131, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, 131, (23,))
    labels[[0, 5]] = -100
    return logits, labels


@pytest.mark.parametrize("kernel", ["reference", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_losses_and_errors_are_those_of_autograd(kernel, dtype, tolerance):
    logits, labels = problem(dtype)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    losses, error = softmax_error.named(kernel)(logits.clone(), labels)
    assert error.dtype == dtype
    torch.testing.assert_close(
        losses.double(), expected.detach(), rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-6
    )
    torch.testing.assert_close(error.double(), slope, rtol=tolerance, atol=tolerance * 1e-2)
    assert (error[[0, 5]] == 0).all() and (losses[[0, 5]] == 0).all()


@needs_compiler
def test_large_logits_do_not_overflow_and_nan_is_not_hidden():
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, torch.nan, 1.0]])
    losses, error = softmax_error.named("native")(logits, torch.tensor([1, 2]))
    assert losses[0] == 1e4
    torch.testing.assert_close(error[0], torch.tensor([1.0, -1.0, 0.0]), rtol=0, atol=1e-37)
    assert losses[1].isnan() and error[1].isnan().any()
