"""Reading a text once while recording what its learners emit and every call of a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from synthe_core.introspection.linear_memory import RULES
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.trace import Record, Trace
from synthe_core.model.head_chunks import logits_in_chunks
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.ops.dispatch import Op, OpRecorder, record_ops

FOLLOWED = RULES | {"gated_average", "window_attention", "probed_attention", "forgetting_attention"}
"""The operators whose readings can be followed back."""
LIKELIEST = 5


class MemoryCall(NamedTuple):
    """A call of a memory's operator: the path and learner that made it, and its arguments; `at` as in `Record`."""

    path: str
    learner: Learner[Any]
    op: Op
    arguments: dict[str, Any]
    at: Tensor | None


class Predictions(NamedTuple):
    """The model's predictions at each token, arrays over T.

    bits: the token's surprise, -log2 of its probability; nan for the first. rank: how many tokens were more likely; -1
    for the first. entropy: of the next token, in bits. likeliest [T, 5]: the most likely next tokens, with their
    `probability`.
    """

    bits: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    likeliest: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class Observation:
    """The tokens that were read, what was recorded, and the state after them."""

    tokens: list[int]
    records: list[Record]
    memory_calls: list[MemoryCall]
    predictions: Predictions
    state: ModelState


def no_check() -> None:
    """Nobody interrupts the work."""


@torch.no_grad()
def observe(
    model: LanguageModel, tokens: list[int], *, memories: bool = True, check: Callable[[], None] = no_check
) -> Observation:
    """Reads `tokens` from a fresh state in one pass and records; without `memories`, emissions only.

    check: called before every learner; what it raises ends the pass.
    """
    device = next(model.parameters()).device
    text = torch.tensor([tokens], dtype=torch.int64, device=device)
    trace = Trace()
    with record_ops(FOLLOWED if memories else ()) as recorder, memory_calls(model, recorder, check) as calls:
        hidden, state, _ = model.hidden(text, trace=trace)
    return Observation(tokens, trace.records, calls, _predictions(model, hidden[0], text[0]), state)


@contextmanager
def memory_calls(
    model: nn.Module, recorder: OpRecorder, check: Callable[[], None] = no_check
) -> Iterator[list[MemoryCall]]:
    """Collects the recorded calls with the learner that made each, its path and its tokens."""
    calls: list[MemoryCall] = []
    starts: list[int] = []
    assigned: set[int] = set()

    def before(learner: nn.Module, arguments: tuple[Any, ...]) -> None:
        check()
        starts.append(len(recorder.calls))

    def after(learner: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        ctx = next(value for value in arguments if isinstance(value, Pass))
        for index in range(starts.pop(), len(recorder.calls)):
            if index not in assigned:
                assigned.add(index)
                op, op_call, _ = recorder.calls[index]
                calls.append(MemoryCall(ctx.path, learner, op, op_call.arguments, ctx.tokens))  # type: ignore[arg-type]

    learners = [module for module in model.modules() if isinstance(module, Learner)]
    hooks = [hook for each in learners for hook in (each.register_forward_pre_hook(before),)]
    hooks += [each.register_forward_hook(after) for each in learners]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _predictions(model: LanguageModel, hidden: Tensor, text: Tensor) -> Predictions:
    """The predictions from hidden [T, D] after each token of `text` [T]."""
    bits, rank, entropy, ids, probabilities = [], [], [], [], []
    next_tokens = torch.cat([text[1:], text[:1]])
    for logits, targets in logits_in_chunks(model, hidden[None], next_tokens[None]):
        log_p = logits[0].log_softmax(-1)
        logprob = log_p.gather(-1, targets[0][:, None])
        bits.append(-logprob[:, 0] / np.log(2))
        rank.append((log_p > logprob).sum(-1))
        entropy.append(-(log_p.exp() * log_p).sum(-1) / np.log(2))
        best = log_p.topk(min(LIKELIEST, model.vocab), dim=-1)
        ids.append(best.indices)
        probabilities.append(best.values.exp())
    surprise = torch.cat(bits).roll(1).cpu().numpy()
    place = torch.cat(rank).roll(1).cpu().numpy()
    surprise[0], place[0] = np.nan, -1
    rest = (torch.cat(parts).cpu().numpy() for parts in (entropy, ids, probabilities))
    return Predictions(surprise, place, *rest)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module that emitted at `path`: `blocks.2.1`, `blocks.0.3.slow.1.rule`, `router`, `pool`."""
    first, *rest = path.split(".")
    module: Any = getattr(model, first)
    if first == "blocks":
        module, rest = module[int(rest[0])].learners[int(rest[1])], rest[2:]
    for name in rest:
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    result: nn.Module = module
    return result
