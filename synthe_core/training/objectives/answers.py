"""Log-probabilities of answers: what every preference objective is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.model.language_model import Loss
from synthe_core.ops.cross_entropy import IGNORED


def answer_logprobs(model: Any, batch: Batch) -> tuple[Loss, Tensor]:
    """log p(answer | prompt) of each row [B] in nats, the sum over its targets, which carries the gradient; and the
    Loss of the pass with what the model adds to it."""
    loss, _ = model.loss(batch.inputs, batch.targets, None, batch.lengths, per_token=True)
    return loss._replace(each=loss.each.detach()), -loss.each.sum(1)


def answer_tokens(batch: Batch) -> Tensor:
    """Targets of each row, int64 [B]."""
    return (batch.targets != IGNORED).sum(1)


def mismatched(batch: Batch, sequence: int) -> Batch:
    """Each row's prompt with the answer of another row, cut to `sequence` tokens: samples of answers that have nothing
    to do with their prompts.

    The answer is that of the nearest row before it, cyclically, whose prompt is another one; of the row before it where
    all have the same prompt.
    """
    spans = [torch.nonzero(row != IGNORED)[:, 0] for row in batch.targets]
    prompts = [row[: int(span[0]) + 1] for row, span in zip(batch.inputs, spans, strict=True)]
    rows = []
    for row, prompt in enumerate(prompts):
        order = [(row - step) % len(prompts) for step in range(1, len(prompts))]
        other = next((each for each in order if not torch.equal(prompts[each], prompt)), (row - 1) % len(prompts))
        first, last = int(spans[other][0]), int(spans[other][-1])
        answer = batch.targets[other, first : last + 1]
        ids = torch.cat([prompt, batch.inputs[other, first + 1 : last + 1]])
        targets = torch.cat([torch.full((len(prompt) - 1,), IGNORED, dtype=answer.dtype), answer])
        rows.append((ids[:sequence], targets[:sequence]))
    lengths = torch.tensor([len(ids) for ids, _ in rows], dtype=torch.int64)
    inputs = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, (ids, answer) in enumerate(rows):
        inputs[row, : len(ids)], targets[row, : len(ids)] = ids, answer
    return Batch(inputs, targets, lengths)
