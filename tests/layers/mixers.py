"""A learner beside the mixer of transformers that has the same weights: outputs, every gradient, and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.layers.learner import Learner, Pass

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@contextmanager
def wide() -> Iterator[None]:
    """Makes transformers' mixers compute in float64, although they cast to float32 in places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        yield


def twins(learner: Learner[Any], mixer: torch.nn.Module) -> tuple[Learner[Any], torch.nn.Module]:
    """Both in float64 with the same weights, which are away from their initial symmetry: names and shapes agree."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    learner.double().load_state_dict(mixer.double().state_dict(), strict=True)
    return learner, mixer.eval()


def outcome(module: Any, call: Any, x: Tensor, slope: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.clone().requires_grad_()
    y = call(x)
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad((y * slope).sum(), [x, *named.values()])
    return y.detach(), dict(zip(["x", *named], gradients, strict=True))


def assert_same_layer(learner: Learner[Any], mixer: torch.nn.Module, width: int, time: int) -> None:
    torch.manual_seed(2)
    x, slope = torch.randn(2, 2, time, width, dtype=torch.float64).unbind()
    with wide():
        expected, gradients = outcome(mixer, mixer, x, slope)
    actual, slopes = outcome(learner, lambda x: learner(x, None, Pass.over(x))[0], x, slope)
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert gradients.keys() == slopes.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        assert scale > 0 or (name == "A_log" and time == 1), name  # the first token has no past to forget
        torch.testing.assert_close(
            slopes[name], gradient, rtol=1e-9, atol=1e-14 + 1e-10 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_decoding(learner: Learner[Any], mixer: torch.nn.Module, cache: Any, width: int) -> None:
    """A prompt of 13 tokens, then 5 one by one, the mixer from its cache and the learner from its state."""
    torch.manual_seed(3)
    x = torch.randn(2, 18, width, dtype=torch.float64)
    state = None
    with torch.no_grad():
        for start, end in zip([0, *range(13, 18)], range(13, 19), strict=True):
            with wide():
                expected = mixer(x[:, start:end], cache_params=cache)
            ctx = Pass.over(x[:, start:end], start=torch.full((2,), start))
            y, state = learner(x[:, start:end], state, ctx)
            torch.testing.assert_close(y, expected, **CLOSE)
