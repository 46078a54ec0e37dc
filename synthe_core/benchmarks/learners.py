"""What every learner of the table costs as sequences grow, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from synthe_core.benchmarks.paired import paired
from synthe_core.errors import InputError
from synthe_core.events import Event, Measurement, Notice, Progress
from synthe_core.layers import LAYERS, build, parse
from synthe_core.layers.learner import Learner, Pass
from synthe_core.state import nbytes


def growth(
    times: tuple[int, ...], width: int, turns: int, device: str, names: list[str] | None = None
) -> Iterator[Event]:
    """Forward and backward of every learner at its defaults over one sequence of each of `times` tokens, paired.

    `growth` is the time of a token over that of a token at the first of `times`: 1 is a cost linear in the sequence.
    `state_bytes` is counted from the state that the longest pass returned.
    """
    for name in names or list(LAYERS):
        yield Progress(f"{name} at T={', '.join(map(str, times))}", 0)
        try:
            learner = build(parse(name), width).to(device)
        except InputError as error:
            yield Notice(f"{name} is left out: {error.message}", "warning")
            continue
        result = paired({str(time): _pass(learner, time, device) for time in times}, turns, device)
        remembered = nbytes(_state(learner, times[-1], device))
        for time in times:
            timing, ratio = result.timings[str(time)], result.ratios[str(time)]
            figures = {"us_per_token": timing.median / time * 1e6, "growth": ratio * times[0] / time}
            yield Measurement(f"{name} T={time}", {"candidate": name, **figures, "state_bytes": remembered})


def _inputs(learner: Learner[Any], time: int, device: str) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, time, learner.width, device=device)


def _pass(learner: Learner[Any], time: int, device: str) -> Callable[[], object]:
    x = _inputs(learner, time, device).requires_grad_()

    def run() -> None:
        ctx = Pass.over(x)
        y, _ = learner(x, None, ctx)
        (y.sum() + sum(value for _, value in ctx.losses)).backward()
        learner.zero_grad()
        x.grad = None

    return run


@torch.no_grad()
def _state(learner: Learner[Any], time: int, device: str) -> Any:
    x = _inputs(learner, time, device)
    return learner(x, None, Pass.over(x))[1]
