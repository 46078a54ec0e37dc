"""The layers of a student that take the place of a teacher's attention, and what a teacher's layers read and return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.attention import Attention
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.mamba2 import Mamba2
from synthe_core.model.block import residual_of
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import RecordedCall, record_ops
from synthe_core.training.distillation.mixing import LINEAR_OPS, attention_matrix, mixing_matrix

SAME = ("width", "blocks", "tie", "embed_norm", "embedding_scale", "positions", "norm", "norm_eps", "head_bias")
PROBE = "give a teacher whose attention has no `when`"
SOFTMAX = "window_attention"
SAME_HEAD = ("logit_scale", "logit_cap")


NORMALISING = frozenset({"delta", "delta_memory", "gated_delta_2", "gla", "kda", "mlstm", "retention", "rwkv7"})
"""Learners that normalise each head's reading: the length of a row of their mixing matrix has no effect."""


class Layer(NamedTuple):
    """A learner of the student in the place of the teacher's attention; `name` is its path in the model."""

    name: str
    student: Learner[Any]
    teacher: Attention


class Reading(NamedTuple):
    """What a learner of the teacher read in a pass and returned, x and y [B, T, D]; call: that of its softmax."""

    x: Tensor
    y: Tensor
    call: RecordedCall


def check_student(student: ModelSpec, teacher: ModelSpec) -> None:
    """InputError unless the student is the teacher with other learners in the place of its attention."""
    for key in (*SAME, *SAME_HEAD):
        mine, theirs = getattr(student, key), getattr(teacher, key)
        if mine != theirs:
            raise InputError(
                f"model.{key} of the student is {mine}, and of the teacher {theirs}", "a student has its teacher's"
            )
    for block in range(student.blocks):
        mine, theirs = student.learners_of(block), teacher.learners_of(block)
        if len(mine) != len(theirs):
            raise InputError(
                f"block {block} of the student has {len(mine)} learners, and of the teacher {len(theirs)}",
                "a student has a learner for each of its teacher's",
            )
        for place, (own, other) in enumerate(zip(mine, theirs, strict=True)):
            if own != other and other.type != "attention":  # type: ignore[attr-defined]
                raise InputError(
                    f"block {block}: learner {place} of the student is not the teacher's {other.type}",  # type: ignore[attr-defined]
                    "only attention is replaced; the rest is copied",
                )
            if residual_of(own) != residual_of(other):
                raise InputError(
                    f"block {block}: the residual of {own.type} is not that of the teacher's attention",  # type: ignore[attr-defined]
                    "a student's learner is added to the stream as its teacher's attention is",
                )


def replaced_layers(student: LanguageModel, teacher: LanguageModel) -> list[Layer]:
    """The layers whose learners differ, in order. InputError for one that needs what other layers publish."""
    layers = []
    for block in range(student.spec.blocks):
        pairs = zip(student.spec.learners_of(block), teacher.spec.learners_of(block), strict=True)
        for place, (own, other) in enumerate(pairs):
            if own == other:
                continue
            learner, attention = (_learner(model, block, place) for model in (student, teacher))
            if needed := (*learner.reads(own), *learner.uses(own)):
                raise InputError(
                    f"block {block}: {own.type} reads '{needed[0]}' of another layer",  # type: ignore[attr-defined]
                    "a student's learner must stand alone",
                )
            layers.append(Layer(f"blocks.{block}.{place}", learner, attention))
    return layers


def _learner(model: LanguageModel, block: int, place: int) -> Any:
    blocks: Any = model.blocks
    return blocks[block].learners[place]


@torch.no_grad()
def read_teacher(teacher: LanguageModel, layers: Sequence[Layer], tokens: Tensor) -> tuple[list[Reading], Tensor]:
    """What the teacher's learners of `layers` read and return over `tokens` [B, T], and the hidden states [B, T, D]."""
    readings: list[Reading] = []
    with record_ops({SOFTMAX}) as recorder:

        def after(learner: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
            if not recorder.calls:
                raise InputError("the teacher's attention is a probe, which runs at some tokens only", PROBE)
            readings.append(Reading(arguments[0], result[0], recorder.calls[-1]))

        with _hooks([layer.teacher for layer in layers], after):
            hidden, _, _ = teacher.hidden(tokens)
    return readings, hidden


@contextmanager
def _hooks(modules: Sequence[nn.Module], after: Any) -> Iterator[None]:
    hooks = [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attention_of(reading: Reading) -> Tensor:
    """The attention matrix [B, H, T, T] of a reading."""
    return attention_matrix(reading.call.call.arguments)


def student_pass(learner: Learner[Any], x: Tensor) -> tuple[Tensor, list[RecordedCall]]:
    """What a learner returns of x [B, T, D] from its first state, and the calls of its memory: linear, or a softmax."""
    with record_ops(LINEAR_OPS | {SOFTMAX}) as recorder:
        y, _ = learner(x, None, Pass.over(x))
    return y, recorder.calls


def matrix_of(learner: Learner[Any], calls: Sequence[RecordedCall], time: int) -> Tensor:
    """The mixing matrix [B, H, T, T] of a learner's pass over `time` tokens, with gradient.

    Of a learner with n steps a token, a reading is that after the last step, and a column the sum of a token's writes.
    InputError for a learner whose memory is neither one linear recurrence nor one softmax.
    """
    name = learner.config.type
    parts = [module for module in learner.modules() if isinstance(module, Learner)]
    if len(calls) != 1 or len(parts) > 1:  # a memory among others is not the learner's
        raise InputError(f"{name} has no mixing matrix: it is not one memory", "such as gla, delta or mamba2")
    operator, call, _ = calls[0]
    if operator.name == SOFTMAX:
        return attention_matrix(call.arguments)
    matrix = mixing_matrix(operator.name, call.arguments)
    steps = matrix.shape[-1] // time
    if steps > 1:
        matrix = matrix[:, :, steps - 1 :: steps].unflatten(-1, (time, steps)).sum(-1)
    if name == "gla":
        matrix = matrix * call.arguments["q"].shape[-1] ** -0.5  # o = Sᵀ q / √K
    elif name == "fast_weights":  # it reads before it writes
        matrix = torch.nn.functional.pad(matrix[:, :, :-1], (0, 0, 1, 0))
    elif isinstance(learner, Mamba2):
        matrix = matrix + torch.diag_embed(learner.D.to(matrix.dtype)[:, None].expand(-1, time))
    return matrix
