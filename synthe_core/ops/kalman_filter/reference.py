"""The definition of `kalman_filter`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.ops.dispatch import op, require_float


class Filtered(NamedTuple):
    """The filter's estimate after each token, and how well it predicted the token.

    mean, variance [B, T, D]: of the state given all observations up to t; those at the last t are the state.
    surprise [B, T]: e² / S, the squared innovation over its predicted variance, mean over channels. 1 is expected.
    confidence [B, T]: r / S = 1 - K, mean over channels: the weight, in (0, 1], of the prediction.
    """

    mean: Tensor
    variance: Tensor
    surprise: Tensor
    confidence: Tensor


@op(batch_invariant=("cpu",))
def kalman_filter(
    observation: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    observation_noise: Tensor,
    mean: Tensor,
    variance: Tensor,
    active: Tensor | None = None,
) -> Filtered:
    """The Kalman filter of x_t = a x_{t-1} + N(0, q), z_t = x_t + N(0, r_t), every channel by itself.

        predict   μ⁻ = a μ,  P⁻ = a² P + q
        update    S = P⁻ + r,  K = P⁻ / S,  e = z - μ⁻,  μ = μ⁻ + K e,  P = (1 - K) P⁻

    observation z and observation_noise r > 0 [B, T, D]; transition a and process_noise q >= 0 [D] or [B, T, D];
    mean and variance >= 0 before the first token [B, D]; all of one dtype, float32 or float64. Where `active` (bool
    [B, T], None = everywhere) is False no time passes: mean and variance stay, surprise is 0 and confidence 1.
    Raises InputError for narrower dtypes and for shapes that do not fit. Source: Kalman 1960.
    """
    check(observation, transition, process_noise)
    a_and_q = (parameter.expand_as(observation).unbind(1) for parameter in (transition, process_noise))
    tokens = zip(observation.unbind(1), *a_and_q, observation_noise.unbind(1), strict=True)
    means, variances, surprises, confidences = [], [], [], []
    for t, (z, a, q, r) in enumerate(tokens):
        prior = a * a * variance + q
        total = prior + r
        gain = prior / total
        innovation = z - a * mean
        updated = a * mean + gain * innovation, r * gain  # r K = (1 - K) P⁻, which would cancel where K is nearly 1
        signals = innovation * innovation / total, r / total
        if active is not None:
            step = active[:, t, None]
            updated = torch.where(step, updated[0], mean), torch.where(step, updated[1], variance)
            signals = torch.where(step, signals[0], 0.0), torch.where(step, signals[1], 1.0)
        mean, variance = updated
        means.append(mean)
        variances.append(variance)
        surprises.append(signals[0].mean(-1))
        confidences.append(signals[1].mean(-1))
    return Filtered(*(torch.stack(each, dim=1) for each in (means, variances, surprises, confidences)))


def check(observation: Tensor, transition: Tensor, process_noise: Tensor) -> None:
    """InputError unless the dtype is wide enough and the two parameters have a shape the operator takes."""
    require_float("observation", observation)
    for name, tensor in (("transition", transition), ("process_noise", process_noise)):
        if tensor.shape not in (observation.shape, observation.shape[-1:]):
            expected = f"{list(observation.shape[-1:])} or {list(observation.shape)}"
            raise InputError(
                f"{name} is {list(tensor.shape)}, not {expected}", "one value a channel, or one a token too"
            )
