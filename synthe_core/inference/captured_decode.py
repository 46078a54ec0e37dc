"""Decoding as one captured step: the state stays where it is, and on CUDA a step is one launch of a graph.

A step of T = 1 launches a hundred kernels or more, each of a few microseconds: the host cannot launch them as fast as
the device computes them. A CUDA graph records the launches once, with the addresses of what they read and write. So
tokens, state and outputs are the same tensors at every step, and their number of rows is one of BUCKETS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.inference import in_place_step
from synthe_core.inference.in_place_step import InPlaceStep
from synthe_core.layers.conditional_gate import ConditionalGate
from synthe_core.layers.experts import ExpertPool
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.expert_mlp import MOST_VISITS

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of rows for which a step is captured."""
WARM_UP = 2  # runs before a capture: kernels are compiled and libraries make their workspaces in the first

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a step; returns what repeats it. It may run the step any number of times."""


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def uncaptured(step: Callable[[], None]) -> Callable[[], None]:
    """The step itself, on devices without graphs: in tests."""
    return step


CAPTURES: dict[str, Capture] = {"cuda": cuda_graph}
"""How a step is captured, by type of device."""


class DecodeOutput(NamedTuple):
    """logits float32 [B, V], the head's input [B, 1, D] and signals [B, 1], and the state; all of it is overwritten by
    the next step."""

    logits: Tensor
    hidden: Tensor
    signals: dict[str, Tensor]
    state: Any


class CapturedStep:
    """One token of `rows` rows, in place."""

    def __init__(self, model: LanguageModel, rows: int, capture: Capture) -> None:
        self.model = model
        device = model.embedding.weight.device
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        fresh = model.init_state(rows)
        self.state = states.map_leaves(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), fresh)
        self._in_place = InPlaceStep(model) if in_place_step.refusal(model) is None else None
        self._outputs: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None
        self._replay = capture(self._run)

    def _run(self) -> None:
        """The step: reads `tokens` and `state`, and writes `state` and the outputs."""
        if self._in_place is not None:
            hidden, signals = self._in_place(self.tokens, self.state)
        else:
            hidden, after, ctx = self.model.hidden(self.tokens, self.state)
            states.map_leaves(lambda old, new: old if new is old else old.copy_(new), self.state, after)
            signals = dict(ctx.signals)
        self._outputs = self.model.head(hidden[:, 0]).float(), hidden, signals

    def __call__(self, tokens: Tensor, state: Any) -> DecodeOutput:
        """The step from another state of at most as many rows, which is copied where it is not this one's own."""
        count = len(tokens)
        self.tokens[:count].copy_(tokens)
        states.map_leaves(lambda mine, leaf: _load(mine[:count], leaf), self.state, state)
        self._replay()
        assert self._outputs is not None
        logits, hidden, signals = self._outputs
        after = states.map_leaves(lambda leaf: leaf[:count], self.state)
        return DecodeOutput(logits[:count], hidden[:count], {name: x[:count] for name, x in signals.items()}, after)


def _load(mine: Tensor, leaf: Tensor) -> Tensor:
    is_mine = mine.data_ptr() == leaf.data_ptr() and mine.stride() == leaf.stride()
    return mine if is_mine else mine.copy_(leaf)


class CapturedDecoder:
    """The steps of a model by bucket. A batch that grows or shrinks moves to another bucket with its state."""

    def __init__(self, model: LanguageModel, capture: Capture) -> None:
        self.model, self.capture = model, capture
        self.buckets = tuple(rows for rows in BUCKETS if rows <= most_rows(model))
        self._steps: dict[int, CapturedStep] = {}

    def __call__(self, tokens: Tensor, state: Any) -> DecodeOutput | None:
        """Logits after `tokens` int64 [B, 1], and the state; None for more rows than there are buckets for.

        The state that is returned is overwritten by the next call: who wants to have it later takes a copy.
        """
        rows = next((each for each in self.buckets if each >= len(tokens)), None)
        if rows is None:
            return None
        if rows not in self._steps:
            self._steps[rows] = CapturedStep(self.model, rows, self.capture)
        return self._steps[rows](tokens, state)


def refusal(model: LanguageModel) -> str | None:
    """Why a model's step is not captured; None where it is."""
    device = model.embedding.weight.device.type
    if device not in CAPTURES:
        return f"{device} has no graphs of launches"
    if model.offload is not None:
        return "weights are read from files in each pass"
    if any(leaf.dim() > 1 and not leaf.shape[1] for _, leaf in states.named_leaves(model.init_state(1, device="meta"))):
        return "a window of attention grows with the text, and a graph has fixed shapes"
    if model.router is not None or any(isinstance(each, ConditionalGate) for each in model.modules()):
        return "a router decides by what it reads which tokens are computed"
    return None


def most_rows(model: LanguageModel) -> int:
    """The largest bucket: for a model with experts no more rows than whose matrices are copied side by side."""
    choices = [each.config.top_k for each in model.modules() if isinstance(each, ExpertPool)]
    return min([BUCKETS[-1], *(MOST_VISITS // count for count in choices)])
