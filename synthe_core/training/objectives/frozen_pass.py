"""Log-probabilities of answers without a gradient, in passes that fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.training.distributed.engine import Engine
from synthe_core.training.gradients import micro_batches
from synthe_core.training.objectives.answers import answer_logprobs
from synthe_core.training.objectives.objective import ObjectiveSetup

ROW = "row"


@torch.no_grad()
def frozen_logprobs(model: Any, batch: Batch, setup: ObjectiveSetup) -> Tensor:
    """log p(answer | prompt) of each row on the CPU, [B], by the model as it is, without dropout.

    The order of torch's random numbers does not change by it.
    """
    rows = batch._replace(group=1, extras={ROW: torch.arange(len(batch.inputs))})
    engine = setup.engine or Engine(model)
    device = setup.context.device
    training = next(iter(model.modules())).training
    parts, order = [], []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.eval()
        try:
            with engine.whole():
                for part in micro_batches(rows, setup.rows, setup.sequence, engine.same_passes):
                    with setup.context.activate():
                        parts.append(answer_logprobs(model, part.to(device))[1])
                    order.append(part.extras[ROW])
        finally:
            model.train(training)
    values = torch.cat(parts).cpu()
    return torch.empty_like(values).scatter_(0, torch.cat(order), values)
