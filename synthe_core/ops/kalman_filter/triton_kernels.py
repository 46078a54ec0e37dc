"""Triton: the Kalman filter's scans of tiles of time by channels, and its signals. Imports Triton.

Forward, the variance before each measurement is a Möbius map of the one before, with u = 1 / r and primes for the token
before: M = a² M' / (u' M' + 1) + q, the matrix [[a² + q u', q], [u', 1]]. No entry is negative, so products do not
cancel; each is divided by the sum of its lower row, which alters no Möbius map. Then K = u M / (1 + u M), P = M / (1 +
u M), and the mean is a linear scan. A token that is not active has a = 1 and q = u = 0. Going back, all is known of
every token but two linear scans: the adjoints of the mean and of the variance.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synthe_core.ops.linear_scan.triton_kernels import compose


@triton.jit
def compose_mobius(a, b, c, d, next_a, next_b, next_c, next_d):
    """The matrix [[a, b], [c, d]] and then the next one, as one, scaled to stay in range."""
    lower_left, lower_right = next_c * a + next_d * c, next_c * b + next_d * d
    factor = 1 / (lower_left + lower_right)
    upper_left, upper_right = next_a * a + next_b * c, next_a * b + next_b * d
    return upper_left * factor, upper_right * factor, lower_left * factor, lower_right * factor


@triton.jit
def parameters(
    transition, process, noise, active, row, t, time, width, channel, inside,
    a_row, a_token, q_row, q_token, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """a, q and u = 1 / r of a tile; 1, 0 and 0 where a token is not active or not of the pass."""
    mask = (t >= 0) & (t < time) & inside[None]
    if HAS_ACTIVE:
        mask = mask & (tl.load(active + row * time + t, mask=(t >= 0) & (t < time), other=0) != 0)
    a = tl.load(transition + row * a_row + t * a_token + channel[None], mask=mask, other=1.0)
    q = tl.load(process + row * q_row + t * q_token + channel[None], mask=mask, other=0.0)
    r = tl.load(noise + (row * time + t) * width + channel[None], mask=mask, other=1.0)
    return a, q, tl.where(mask, 1 / r, 0.0), mask


@triton.jit
def filter_forward(
    observation, transition, process, noise, mean, variance, active, means, variances,
    time, width, a_row, a_token, q_row, q_token,
    HAS_ACTIVE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = channel < width
    step = tl.arange(0, BT)[:, None]
    first = row * width + channel
    carried_mean = tl.load(mean + first, mask=inside, other=0.0)
    carried_prior = tl.load(variance + first, mask=inside, other=0.0)
    for start in range(0, time, BT):
        t = start + step
        a, q, u, active_now = parameters(
            transition, process, noise, active, row, t, time, width, channel, inside,
            a_row, a_token, q_row, q_token, HAS_ACTIVE,
        )  # fmt: skip
        before = parameters(
            transition, process, noise, active, row, t - 1, time, width, channel, inside,
            a_row, a_token, q_row, q_token, HAS_ACTIVE,
        )[2]  # fmt: skip
        squared = a * a
        upper, offset, lower, scale = tl.associative_scan(
            (squared + q * before, q, before, tl.full([BT, BD], 1.0, dtype=q.dtype)), 0, compose_mobius
        )
        prior = (upper * carried_prior[None] + offset) / (lower * carried_prior[None] + scale)
        retained = 1 / (1 + u * prior)
        at = (row * time + t) * width + channel[None]
        z = tl.load(observation + at, mask=active_now, other=0.0)
        reach, inner = tl.associative_scan((a * retained, z * (u * prior * retained)), 0, compose)
        out = inner + reach * carried_mean[None]
        posterior = prior * retained
        mask = (t < time) & inside[None]
        tl.store(means + at, out, mask=mask)
        tl.store(variances + at, posterior, mask=mask)
        carried_mean = tl.sum(tl.where(step == BT - 1, out, 0.0), 0)
        carried_prior = tl.sum(tl.where(step == BT - 1, prior, 0.0), 0)


@triton.jit
def shifted(x, first, row, t, time, width, channel, mask):
    """x at the token before, and `first` before the pass."""
    before = tl.load(x + (row * time + t - 1) * width + channel[None], mask=mask & (t > 0), other=0.0)
    start = tl.load(first + row * width + channel[None] + t * 0, mask=mask & (t == 0), other=0.0)
    return tl.where(t == 0, start, before)


@triton.jit
def filter_signals(
    observation, transition, process, noise, mean, variance, active, means, variances, signals,
    time, width, a_row, a_token, q_row, q_token,
    HAS_ACTIVE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Surprise and confidence, means over all channels."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)[:, None]
    surprise = tl.zeros([BT], dtype=signals.dtype.element_ty)
    confidence = tl.zeros([BT], dtype=signals.dtype.element_ty)
    for block in range(0, width, BD):
        channel = block + tl.arange(0, BD)
        inside = channel < width
        a, q, u, active_now = parameters(
            transition, process, noise, active, row, t, time, width, channel, inside,
            a_row, a_token, q_row, q_token, HAS_ACTIVE,
        )  # fmt: skip
        of_pass = (t < time) & inside[None]
        before = shifted(variances, variance, row, t, time, width, channel, of_pass)
        retained = 1 / (1 + u * (a * a * before + q))
        z = tl.load(observation + (row * time + t) * width + channel[None], mask=active_now, other=0.0)
        innovation = tl.where(active_now, z - a * shifted(means, mean, row, t, time, width, channel, of_pass), 0.0)
        surprise += tl.sum(innovation * innovation * u * retained, 1)
        confidence += tl.sum(tl.where(of_pass, retained, 0.0), 1)
    token = tl.program_id(1) * BT + tl.arange(0, BT)
    at = signals + row * time + token
    tl.store(at, surprise / width, mask=token < time)
    tl.store(at + tl.num_programs(0).to(tl.int64) * time, confidence / width, mask=token < time)


@triton.jit
def optional(x, at, mask, HAS: tl.constexpr, like):
    """What x holds, or zeros where it is absent."""
    if HAS:
        return tl.load(x + at, mask=mask, other=0.0) + tl.zeros_like(like)
    return tl.zeros_like(like)


@triton.jit
def local_terms(
    observation, transition, process, noise, mean, variance, active, means, variances,
    mean_grad, variance_grad, surprise_grad, confidence_grad,
    row, t, time, width, channel, inside, a_row, a_token, q_row, q_token,
    HAS_ACTIVE: tl.constexpr, HAS_MEAN: tl.constexpr, HAS_VARIANCE: tl.constexpr, HAS_SURPRISE: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
):  # fmt: skip
    """Of every token: a, the variance and the mean before it, 1 - K, K, 1 / S and the innovation e; the gradients of
    mean and variance that it was given, half the gradient of e through surprise, and that of each channel's 1 - K."""
    a, q, u, mask = parameters(
        transition, process, noise, active, row, t, time, width, channel, inside,
        a_row, a_token, q_row, q_token, HAS_ACTIVE,
    )  # fmt: skip
    at = (row * time + t) * width + channel[None]
    of_pass = (t < time) & inside[None]
    variance_before = shifted(variances, variance, row, t, time, width, channel, of_pass)
    mean_before = shifted(means, mean, row, t, time, width, channel, of_pass)
    prior = a * a * variance_before + q
    retained = 1 / (1 + u * prior)
    inverse = u * retained
    z = tl.load(observation + at, mask=mask, other=0.0)
    innovation = tl.where(mask, z - a * mean_before, 0.0)
    of_surprise = optional(surprise_grad, row * time + t, t < time, HAS_SURPRISE, a) / width
    of_retained = optional(confidence_grad, row * time + t, t < time, HAS_CONFIDENCE, a) / width
    half = of_surprise * inverse * innovation
    of_mean = optional(mean_grad, at, of_pass, HAS_MEAN, a)
    of_variance = optional(variance_grad, at, of_pass, HAS_VARIANCE, a)
    return (
        a, variance_before, mean_before, retained, prior * inverse, inverse, innovation,
        of_mean, of_variance, half, of_retained, mask,
    )  # fmt: skip


@triton.jit
def compose_adjoints(a, b, c, d, e, next_a, next_b, next_c, next_d, next_e):
    """Two steps (x, y) -> (a x + b, c y + d x + e) as one."""
    return (
        next_a * a,
        next_a * b + next_b,
        next_c * c,
        next_c * d + next_d * a,
        next_c * e + next_d * b + next_e,
    )


@triton.jit
def adjoint_step(a, retained, inverse, e, of_mean, of_variance, half, of_retained):
    """What a token passes to the mean x and the variance y before it, as (x, y) -> (a x + b, c y + d x + e)."""
    squared, slope = a * a, retained * inverse
    of_prior = (of_mean * e - of_retained) * slope - half * e * inverse + retained * retained * of_variance
    return (
        a * retained,
        a * (retained * of_mean - 2 * half),
        squared * retained * retained,
        squared * slope * e,
        squared * of_prior,
    )


@triton.jit
def token_gradients(a, p, m, retained, k, inverse, e, of_mean, of_posterior, half, of_retained):
    """The gradients of z, r, a and q, and of the predicted mean, from those of a token's mean and variance."""
    # not as a difference of the gradients of mean and observation, which cancels where K is nearly 1
    predicted = of_mean * retained - 2 * half
    of_gain = of_mean * e - of_retained
    of_total = half * e * inverse
    of_prior = of_gain * retained * inverse - of_total + of_posterior * retained * retained
    of_noise = of_posterior * k * k - of_gain * k * inverse - of_total
    return of_mean * k + 2 * half, of_noise, predicted * m + 2 * a * p * of_prior, of_prior, predicted


@triton.jit
def parameter_gradient(at, gradient, total, active, mask, TOKENS: tl.constexpr):
    """Stores the gradient of a parameter of every token; of one that tokens share, returns the sum."""
    gradient = tl.where(active, gradient, 0.0)
    if TOKENS:
        tl.store(at, gradient, mask=mask)
        return total
    return total + tl.sum(gradient, 0)


@triton.jit
def filter_backward(
    observation, transition, process, noise, mean, variance, active, means, variances,
    mean_grad, variance_grad, surprise_grad, confidence_grad,
    of_observation, of_transition, of_process, of_noise, of_mean, of_variance,
    time, width, a_row, a_token, q_row, q_token,
    HAS_ACTIVE: tl.constexpr, HAS_MEAN: tl.constexpr, HAS_VARIANCE: tl.constexpr, HAS_SURPRISE: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr, A_TOKENS: tl.constexpr, Q_TOKENS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """From the end: x and y, what the tokens behind pass to the mean and to the variance after a token, by one scan."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = channel < width
    step = tl.arange(0, BT)[:, None]
    first = row * width + channel
    zero = tl.zeros([BD], dtype=means.dtype.element_ty)
    carried_x, carried_y = zero, zero
    transition_sum, process_sum = zero, zero
    tiles = tl.cdiv(time, BT)
    for index in range(0, tiles):
        t = (tiles - 1 - index) * BT + step
        a, p, m, retained, k, inverse, e, of_m, of_p, half, of_retained, mask = local_terms(
            observation, transition, process, noise, mean, variance, active, means, variances,
            mean_grad, variance_grad, surprise_grad, confidence_grad,
            row, t + 1, time, width, channel, inside, a_row, a_token, q_row, q_token,
            HAS_ACTIVE, HAS_MEAN, HAS_VARIANCE, HAS_SURPRISE, HAS_CONFIDENCE,
        )  # fmt: skip
        steps = adjoint_step(a, retained, inverse, e, of_m, of_p, half, of_retained)
        xx, x, yy, yx, y = tl.associative_scan(steps, 0, compose_adjoints, reverse=True)
        x, y = xx * carried_x[None] + x, yy * carried_y[None] + yx * carried_x[None] + y
        carried_x = tl.sum(tl.where(step == 0, x, 0.0), 0)
        carried_y = tl.sum(tl.where(step == 0, y, 0.0), 0)

        a, p, m, retained, k, inverse, e, of_m, of_p, half, of_retained, mask = local_terms(
            observation, transition, process, noise, mean, variance, active, means, variances,
            mean_grad, variance_grad, surprise_grad, confidence_grad,
            row, t, time, width, channel, inside, a_row, a_token, q_row, q_token,
            HAS_ACTIVE, HAS_MEAN, HAS_VARIANCE, HAS_SURPRISE, HAS_CONFIDENCE,
        )  # fmt: skip
        of_z, of_r, of_a, of_q, predicted = token_gradients(
            a, p, m, retained, k, inverse, e, of_m + x, of_p + y, half, of_retained
        )
        at = (row * time + t) * width + channel[None]
        of_pass = (t < time) & inside[None]
        tl.store(of_observation + at, tl.where(mask, of_z, 0.0), mask=of_pass)
        tl.store(of_noise + at, tl.where(mask, of_r, 0.0), mask=of_pass)
        transition_sum = parameter_gradient(of_transition + at, of_a, transition_sum, mask, of_pass, A_TOKENS)
        process_sum = parameter_gradient(of_process + at, of_q, process_sum, mask, of_pass, Q_TOKENS)
        tl.store(of_mean + first, tl.sum(tl.where(step == 0, a * predicted, 0.0), 0), mask=inside)
        tl.store(of_variance + first, tl.sum(tl.where(step == 0, a * a * of_q, 0.0), 0), mask=inside)
    if not A_TOKENS:
        tl.store(of_transition + first, transition_sum, mask=inside)
    if not Q_TOKENS:
        tl.store(of_process + first, process_sum, mask=inside)
