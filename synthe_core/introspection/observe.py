"""One text read once, with everything that its learners showed and every memory that they asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from synthe_core.introspection.linear_memory import RULES
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.trace import Record, Trace
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.ops.dispatch import Op, OpRecorder, record_ops

FOLLOWED = RULES | {"gated_average", "window_attention", "probed_attention"}
"""The operators whose readings can be followed back."""
LIKELIEST = 5
LOGITS = 1 << 24  # held at a time


class Asked(NamedTuple):
    """A memory at work: where, by which learner, the operator and its arguments; `at` as in `Record`."""

    path: str
    learner: Learner[Any]
    op: Op
    arguments: dict[str, Any]
    at: Tensor | None


class Predictions(NamedTuple):
    """What the model made of each token, arrays over T; nan where there is nothing to say.

    bits: how much the token surprised, -log2 of the probability that it was given; nan for the first.
    rank: how many tokens were held likelier; -1 for the first. entropy: of the next token, in bits. likeliest [T, 5]:
    the ids held likeliest to follow, and their `probability`.
    """

    bits: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    likeliest: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class Observation:
    """`tokens` int64 [T] that were read, and what was seen while they were; `state` is the model's after them."""

    tokens: list[int]
    records: list[Record]
    asked: list[Asked]
    predictions: Predictions
    state: ModelState


@torch.no_grad()
def observe(model: LanguageModel, tokens: list[int], *, memories: bool = True) -> Observation:
    """Reads `tokens` from a fresh state in one pass and listens; without `memories`, to what is emitted only."""
    device = model.embedding.weight.device
    text = torch.tensor([tokens], dtype=torch.int64, device=device)
    trace = Trace()
    with record_ops(FOLLOWED if memories else ()) as recorder, _noting(model, recorder) as asked:
        hidden, state, _ = model.hidden(text, trace=trace)
    return Observation(tokens, trace.records, asked, _predictions(model, hidden[0], text[0]), state)


@contextmanager
def _noting(model: LanguageModel, recorder: OpRecorder) -> Iterator[list[Asked]]:
    """Says of each call of an operator which learner made it, and where in the model and the text."""
    asked: list[Asked] = []
    begun: list[int] = []
    taken: set[int] = set()

    def before(learner: nn.Module, arguments: tuple[Any, ...]) -> None:
        begun.append(len(recorder.calls))

    def after(learner: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        ctx = next(value for value in arguments if isinstance(value, Pass))
        for index in range(begun.pop(), len(recorder.calls)):
            if index not in taken:
                taken.add(index)
                op, call, _ = recorder.calls[index]
                asked.append(Asked(ctx.path, learner, op, call.arguments, ctx.tokens))  # type: ignore[arg-type]

    learners = [module for module in model.modules() if isinstance(module, Learner)]
    hooks = [hook for each in learners for hook in (each.register_forward_pre_hook(before),)]
    hooks += [each.register_forward_hook(after) for each in learners]
    try:
        yield asked
    finally:
        for hook in hooks:
            hook.remove()


def _predictions(model: LanguageModel, hidden: Tensor, text: Tensor) -> Predictions:
    """Of the hidden states [T, D] after each token of `text` [T]."""
    step = max(1, LOGITS // model.vocab)
    bits, rank, entropy, ids, chances = [], [], [], [], []
    follows = torch.cat([text[1:], text[:1]])
    for part, answer in zip(hidden.split(step), follows.split(step), strict=True):
        log_p = model.head(part).float().log_softmax(-1)
        said = log_p.gather(-1, answer[:, None])
        bits.append(-said[:, 0] / np.log(2))
        rank.append((log_p > said).sum(-1))
        entropy.append(-(log_p.exp() * log_p).sum(-1) / np.log(2))
        best = log_p.topk(min(LIKELIEST, model.vocab), dim=-1)
        ids.append(best.indices)
        chances.append(best.values.exp())
    surprise = torch.cat(bits).roll(1).cpu().numpy()
    place = torch.cat(rank).roll(1).cpu().numpy()
    surprise[0], place[0] = np.nan, -1
    rest = (torch.cat(parts).cpu().numpy() for parts in (entropy, ids, chances))
    return Predictions(surprise, place, *rest)


def maker(model: nn.Module, path: str) -> nn.Module:
    """The module that emitted at `path`: `blocks.2.1`, `blocks.0.3.slow.1.rule`, `router`, `pool`."""
    first, *rest = path.split(".")
    module: Any = getattr(model, first)
    if first == "blocks":
        module, rest = module[int(rest[0])].learners[int(rest[1])], rest[2:]
    for name in rest:
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    found: nn.Module = module
    return found
