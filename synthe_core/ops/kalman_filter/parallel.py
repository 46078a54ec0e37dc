"""The Kalman filter in about 4 sqrt(T) steps on any device: exact, with its gradient by hand.

With u = 1 / r the variance is a Möbius map of the one before, P' = M / (u M + 1) with M = a² P + q, that is the matrix
[[a², q], [u a², u q + 1]]. All its entries are positive, so products of many never cancel; each product is scaled to
stay in range. Given the variances the gains are known and the mean is a linear scan. Going back, the mean's adjoint is
a linear scan, and so is the variance's, because dP'/dP = a² (1 - K)². Tokens that are not active have a = 1 and
q = u = 0.

Source: Särkkä & García-Fernández 2020, "Temporal parallelization of Bayesian smoothers".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower
from synthe_core.ops.kalman_filter.reference import Filtered, check, kalman_filter
from synthe_core.ops.linear_scan.blocked import previous, scan, scan_back


@kalman_filter.kernel("parallel", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def parallel(
    observation: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    observation_noise: Tensor,
    mean: Tensor,
    variance: Tensor,
    active: Tensor | None = None,
) -> Filtered:
    """Products of 2x2 matrices for the variance, then a linear scan for the mean."""
    check(observation, transition, process_noise)
    arguments = (observation, transition, process_noise, observation_noise, mean, variance, active)
    return Filtered(*_Parallel.apply(*arguments))


@parallel.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.time > 1 else Slower("a single step: the recurrence itself is a few operations")


def variances(squared: Tensor, process_noise: Tensor, precision: Tensor, first: Tensor) -> Tensor:
    """Every posterior variance, from a² and q (broadcastable to [B, T, D]), u = 1/r [B, T, D] and the first P [B, D].

    Cut into chunks as in the linear scan. `top` and `bottom` are the rows of the products, [2, B, T, D].
    """
    time = precision.shape[1]
    chunk = math.isqrt(time - 1) + 1
    squared, process_noise = squared.expand_as(precision), process_noise.expand_as(precision)
    top = torch.stack([squared, process_noise])
    bottom = precision * top
    bottom[1] += 1
    _scale(top, bottom)
    for c in range(1, chunk):
        now, past = slice(c, None, chunk), slice(c - 1, time - 1, chunk)
        upper = squared[:, now] * top[:, :, past] + process_noise[:, now] * bottom[:, :, past]
        lower = torch.addcmul(bottom[:, :, past], precision[:, now], upper)
        _scale(upper, lower)
        top[:, :, now], bottom[:, :, now] = upper, lower
    result = torch.empty_like(precision)
    for start in range(0, time, chunk):
        part = slice(start, start + chunk)
        carried = (first if start == 0 else result[:, start - 1])[:, None]
        above = torch.addcmul(top[1, :, part], top[0, :, part], carried)
        below = torch.addcmul(bottom[1, :, part], bottom[0, :, part], carried)
        torch.div(above, below, out=result[:, part])
    return result


def _scale(top: Tensor, bottom: Tensor) -> None:
    """Divides a matrix by the sum of its lower row, which is positive: a Möbius map does not change by a factor."""
    factor = bottom.sum(0).reciprocal_()
    top.mul_(factor)
    bottom.mul_(factor)


class _Step(NamedTuple):
    """The terms of every token's update, [B, T, D]."""

    transition: Tensor  # a, and 1 where not active
    variance: Tensor  # P before the token
    inverse: Tensor  # 1 / S
    gain: Tensor  # K
    retained: Tensor  # 1 - K


def _steps(
    transition: Tensor, process_noise: Tensor, precision: Tensor, before: Tensor, active: Tensor | None
) -> _Step:
    a, q = _inactive_as_identity(transition, process_noise, active)
    prior = torch.addcmul(q, a * a, before)
    retained = torch.addcmul(torch.ones_like(prior), precision, prior).reciprocal_()
    inverse = precision * retained
    return _Step(a, before, inverse, prior * inverse, retained)


def _inactive_as_identity(transition: Tensor, process_noise: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
    """a and q, with 1 and 0 where a token is not active."""
    if active is None:
        return transition, process_noise
    return torch.where(active[..., None], transition, 1.0), torch.where(active[..., None], process_noise, 0.0)


def _precision(noise: Tensor, active: Tensor | None) -> Tensor:
    return noise.reciprocal() if active is None else torch.where(active[..., None], noise.reciprocal(), 0.0)


class _Parallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        observation: Tensor,
        transition: Tensor,
        process_noise: Tensor,
        observation_noise: Tensor,
        mean: Tensor,
        variance: Tensor,
        active: Tensor | None,
    ) -> tuple[Tensor, ...]:
        precision = _precision(observation_noise, active)
        a, q = _inactive_as_identity(transition, process_noise, active)
        posterior = variances(a * a, q, precision, variance)
        step = _steps(transition, process_noise, precision, previous(posterior, variance), active)
        means = scan(step.transition * step.retained, observation * step.gain, mean)
        innovation = torch.addcmul(observation, step.transition, previous(means, mean), value=-1)
        surprise = innovation.square_().mul_(step.inverse).mean(-1)
        inputs = observation, transition, process_noise, observation_noise, mean, variance, active
        ctx.save_for_backward(*inputs, means, posterior)
        ctx.set_materialize_grads(False)
        return means, posterior, surprise, step.retained.mean(-1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        mean_grad: Tensor | None,
        variance_grad: Tensor | None,
        surprise_grad: Tensor | None,
        confidence_grad: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        observation, transition, process_noise, noise, mean, variance, active, means, posterior = ctx.saved_tensors
        before = previous(means, mean)
        a, variance_before, inverse, gain, retained = _steps(
            transition, process_noise, _precision(noise, active), previous(posterior, variance), active
        )
        innovation = torch.addcmul(observation, a, before, value=-1)
        # half of the gradient of e through surprise
        surprise_term = _per_channel(surprise_grad, means) * inverse * innovation

        seed = torch.zeros_like(means) if mean_grad is None else mean_grad.clone()
        seed[:, :-1] -= (2 * a * surprise_term)[:, 1:]
        adjoint = scan_back(scan, a * retained, seed)
        observation_grad = torch.addcmul(2 * surprise_term, adjoint, gain)
        # not adjoint - observation_grad, which cancels where K is nearly 1
        predicted_grad = adjoint * retained - 2 * surprise_term

        gain_grad = adjoint * innovation - _per_channel(confidence_grad, means)
        surprise_term *= innovation * inverse  # minus the gradient of S through surprise
        own = gain_grad * retained * inverse - surprise_term  # d prior, without later variances
        squared = a * a
        seed = torch.zeros_like(means) if variance_grad is None else variance_grad.clone()
        seed[:, :-1] += (squared * own)[:, 1:]
        posterior_grad = scan_back(scan, (squared * retained * retained).expand_as(own), seed)
        prior_grad = own + posterior_grad * retained * retained

        noise_grad = posterior_grad * gain * gain - gain_grad * gain * inverse - surprise_term
        transition_grad = predicted_grad * before + 2 * a * variance_before * prior_grad
        process_grad = prior_grad
        if active is not None:
            transition_grad = transition_grad * active[..., None]
            process_grad = process_grad * active[..., None]
        mean_first = (a * predicted_grad)[:, 0]
        variance_first = (squared * prior_grad)[:, 0]
        return (
            observation_grad,
            transition_grad.sum_to_size(transition.shape),
            process_grad.sum_to_size(process_noise.shape),
            noise_grad,
            mean_first,
            variance_first,
            None,
        )


def _per_channel(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient that a mean over channels [B, T] passes to each of them, [B, T, 1]."""
    return like.new_zeros(1, 1, 1) if grad is None else (grad / like.shape[-1])[..., None]
