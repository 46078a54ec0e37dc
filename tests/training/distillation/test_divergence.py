"""Divergences against torch's own, and what the most likely tokens alone give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.training.distillation.divergence import Direction, divergence, targets_of


def logits(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(4, 7, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_it_is_the_divergence_of_torch(temperature: float, direction: Direction) -> None:
    student, teacher = logits(0), logits(1)
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    pair = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    expected = F.kl_div(*pair, reduction="none", log_target=True).sum(-1) * temperature**2
    torch.testing.assert_close(divergence(student, targets_of(teacher, temperature), temperature, direction), expected)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_most_likely_tokens_are_a_lower_bound_that_rises_with_their_number(direction: Direction) -> None:
    student, teacher = logits(0), logits(1)
    whole = divergence(student, targets_of(teacher), direction=direction)
    bounds = [divergence(student, targets_of(teacher, 1.0, k), direction=direction) for k in (1, 4, 16, 39)]
    for lower, higher in zip(bounds, [*bounds[1:], whole], strict=True):
        assert (lower <= higher + 1e-12).all()
    torch.testing.assert_close(bounds[-1], whole)  # the rest is a single token
    assert targets_of(teacher, 1.0, 40).ids is None


@pytest.mark.parametrize("top_k", [None, 5])
def test_it_is_zero_for_the_teacher_itself_and_has_no_gradient_there(top_k: int | None) -> None:
    own = logits(2).requires_grad_()
    value = divergence(own, targets_of(own.detach(), 2.0, top_k), 2.0)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(value.sum(), own)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_a_certain_teacher_stays_finite() -> None:
    certain = torch.zeros(1, 40).index_fill(1, torch.tensor([3]), 200.0)
    student = torch.zeros(1, 40, requires_grad=True)
    for direction in ("forward", "reverse"):
        value = divergence(student, targets_of(certain, 1.0, 2), direction=direction)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
