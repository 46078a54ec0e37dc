"""The losses of the three stages of MOHAWK: matrix orientation, hidden-state alignment, distillation of predictions.

In the first two a layer of the student reads what the teacher's layer read, so that layers do not depend on each other
and the teacher runs once for all of them.

Source: Bick et al. 2024, "Transformers to SSMs: distilling quadratic knowledge to subquadratic models".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.training.distillation.divergence import Direction, Targets, divergence
from synthe_core.training.distillation.layers import NORMALISING, Layer, Reading, attention_of, matrix_of, student_pass

MAX_LOGITS = 1 << 23  # numbers of a chunk, of which the student's and the teacher's are in memory together


def orientation(layers: Sequence[Layer], readings: Sequence[Reading]) -> Tensor:
    """‖M - A‖_F of the student's mixing matrix and the teacher's attention matrix, the mean over texts and heads, [L].

    Where a learner normalises each head's reading, the length of a row of M has no effect; it is made that of A's row.
    InputError for a layer that has another number of heads than the teacher's attention, or no mixing matrix.
    """
    distances = []
    for layer, reading in zip(layers, readings, strict=True):
        _, calls = student_pass(layer.student, reading.x)
        matrix, attention = matrix_of(layer.student, calls, reading.x.shape[1]), attention_of(reading)
        if matrix.shape[1] != attention.shape[1]:
            raise InputError(
                f"{layer.student.config.type} of {layer.name} has {matrix.shape[1]} heads, and the teacher's attention "
                f"{attention.shape[1]}: their matrices cannot be compared",
                "give it as many heads, or leave out the stage: objective.stages.orientation=0",
            )
        attention = attention.to(matrix.dtype)
        if layer.student.config.type in NORMALISING:
            lengths = matrix.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
            matrix = matrix * (attention.norm(dim=-1, keepdim=True) / lengths)
        distances.append(torch.linalg.matrix_norm(matrix - attention).mean())
    return torch.stack(distances)


def alignment(layers: Sequence[Layer], readings: Sequence[Reading]) -> Tensor:
    """‖y - ŷ‖ of what the student's and the teacher's layers return, the mean over tokens, [L]."""
    distances = []
    for layer, reading in zip(layers, readings, strict=True):
        y, _ = student_pass(layer.student, reading.x)
        distances.append((y.float() - reading.y.float()).norm(dim=-1).mean())
    return torch.stack(distances)


class Predictions(NamedTuple):
    """Sums over the scored tokens: the divergence from the teacher and the cross-entropy of the text, in nats, and
    `each` token's cross-entropy [B, T] without gradient."""

    divergence: Tensor
    cross_entropy: Tensor
    each: Tensor


def prediction_losses(
    student: LanguageModel,
    hidden: Tensor,
    targets: Tensor,
    teacher: Callable[[slice], Targets],
    temperature: float = 1.0,
    direction: Direction = "forward",
) -> Predictions:
    """Of hidden states [B, T, D] and the tokens that follow, int64 [B, T]; `teacher` gives its predictions [B, t, ...]
    at some tokens.

    Logits are made in chunks along T. Where there are several, the backward pass makes them again.
    """
    size = max(1, MAX_LOGITS // (hidden.shape[0] * student.vocab))
    chunks = [slice(first, first + size) for first in range(0, hidden.shape[1], size)]
    sums, each = [], []
    for chunk in chunks:
        part = partial(_chunk, student, temperature=temperature, direction=direction)
        arguments = (hidden[:, chunk], targets[:, chunk], teacher(chunk))
        again = len(chunks) > 1 and torch.is_grad_enabled()
        total, nats = checkpoint(part, *arguments, use_reentrant=False) if again else part(*arguments)
        sums.append(torch.stack([total, nats.sum()]))
        each.append(nats.detach())
    total, nats = torch.stack(sums).sum(0)
    return Predictions(total, nats, torch.cat(each, 1))


def _chunk(
    student: LanguageModel,
    hidden: Tensor,
    targets: Tensor,
    teacher: Targets,
    *,
    temperature: float,
    direction: Direction,
) -> tuple[Tensor, Tensor]:
    logits = student.head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    apart = divergence(logits, teacher, temperature, direction)
    return (apart * (targets != IGNORED)).sum(), nats.view_as(targets)
