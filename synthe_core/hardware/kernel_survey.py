"""Which kernel serves which operator on this machine, found by running every learner once and listening."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from pydantic import ValidationError

from synthe_core.errors import SyntheError
from synthe_core.layers import LAYERS
from synthe_core.layers.learner import Spec
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ClassifySpec, ModelSpec
from synthe_core.ops.dispatch import OPS, Call, Choice, Op, record_ops

WIDTH, TIME, VOCAB = 512, 512, 256


class Served(NamedTuple):
    """How a call of an operator is served: `shape` is its first tensor's, `choices` every kernel in the order tried."""

    shape: tuple[int, ...]
    choices: list[Choice]

    @property
    def kernel(self) -> str:
        return next(choice.kernel for choice in self.choices if choice.chosen)


class Survey(NamedTuple):
    """An operator: the learners that call it, and how it serves a training call and a decoding call.

    None where no learner calls it so (the loss is not decoded).
    """

    op: str
    learners: list[str]
    training: Served | None
    decoding: Served | None


def survey(device: str = "cpu", precision: str = "float32") -> list[Survey]:
    """Every operator of the learners in the table, at width 512 and 512 tokens, explained for calls really made.

    Each learner runs with its default settings; where an operator is left over, also with each switch of its Config
    turned. Training runs under autocast where `precision` is "bfloat16", decoding in float32, as the verbs do. Native
    kernels are compiled here if they were not before.
    """
    surveys: dict[str, dict[str, Any]] = {}
    with torch.random.fork_rng():
        for specs in (_default, _variants):
            for name in LAYERS:
                if specs is _variants and surveys.keys() == OPS.keys():
                    break
                for spec in specs(name):
                    for phase, op, call in _calls(spec, device, precision):
                        entry = surveys.setdefault(op.name, {"learners": {}, "training": None, "decoding": None})
                        entry["learners"][name] = None
                        current = entry[phase]
                        if current is None or (phase == "training" and max(current.shape[:2]) < TIME):  # of a slow tier
                            entry[phase] = _served(op, call)
    unused = [Survey(name, [], None, None) for name in OPS if name not in surveys]
    return [Survey(name, [*e["learners"]], e["training"], e["decoding"]) for name, e in surveys.items()] + unused


def _default(name: str) -> list[Spec]:
    """The learner's default settings; none for a learner with required settings."""
    try:
        return [LAYERS[name].Config.model_validate({"type": name})]
    except ValidationError:
        return []


def _variants(name: str) -> Iterator[Spec]:
    """The learner's default settings with one boolean or named choice changed."""
    for default in _default(name):
        for key, field in type(default).model_fields.items():
            now = getattr(default, key)
            if field.annotation is bool:
                options: list[Any] = [not now]
            elif get_origin(field.annotation) is Literal and key != "type":
                options = [option for option in get_args(field.annotation) if option != now]
            else:
                continue
            for option in options:
                try:
                    yield type(default).model_validate({**default.model_dump(), key: option})
                except ValidationError:  # not every switch can be turned alone
                    continue


def _calls(spec: Spec, device: str, precision: str) -> Iterator[tuple[str, Op, Call]]:
    """The operators that a one-learner model calls: in a forward pass of training, then in one step of decoding.

    A learner that sees the whole text is in an encoder, which does not decode.
    """
    try:
        causal = LAYERS[spec.type].causal  # type: ignore[attr-defined]
        head = None if causal else ClassifySpec(classes=2)
        model = build_model(ModelSpec(width=WIDTH, blocks=1, block=[spec], tie=True, head=head), VOCAB).to(device)
        tokens = torch.zeros(1, TIME, dtype=torch.int64, device=device)
        narrow = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
        with narrow, record_ops() as training:
            _, state = model.loss(tokens, tokens)
        with torch.no_grad(), record_ops() as decoding:
            if isinstance(model, LanguageModel):
                model.next_logits(tokens[:, :1], state)
    except (SyntheError, ValidationError):  # settings that do not go together, or need another learner
        return
    yield from (("training", op, call) for op, call, _ in training.calls)
    yield from (("decoding", op, call) for op, call, _ in decoding.calls)


def _served(op: Op, call: Call) -> Served:
    first = next(value for value in call.arguments.values() if isinstance(value, torch.Tensor))
    with torch.set_grad_enabled(call.grad):
        return Served(tuple(first.shape), op.explain(call))
