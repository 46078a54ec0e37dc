"""Which tensor is the first that is not finite, after a loss or a gradient was not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.data.stream import Batch
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import ModelState
from synthe_core.state import map_leaves
from synthe_core.training.distributed.engine import ONLY_NORM
from synthe_core.training.gradients import micro_batches
from synthe_core.training.objectives.objective import Objective, ObjectiveContext
from synthe_core.training.settings import Settings


def first_non_finite(
    objective: Objective, model: Model, batch: Batch, settings: Settings, sequence: int, state: ModelState | None
) -> str:
    """The first tensor that is not finite, in words: a weight, a module's output, a loss, or a gradient.

    The batch is run again, pass by pass, forward and backward, with a hook on every module and every weight.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name}"
    if state is None:
        parts = [(part, state) for part in micro_batches(batch, settings.micro_batch, sequence)]
    else:
        cuts = [
            slice(first, first + settings.micro_batch) for first in range(0, len(batch.inputs), settings.micro_batch)
        ]
        parts = [(batch.select(rows), map_leaves(lambda leaf, rows=rows: leaf[rows], state)) for rows in cuts]
    for part, current in parts:
        culprit = _first_of_pass(objective, model, part.to(settings.device), current, settings)
        if culprit is not None:
            return culprit
    return ONLY_NORM


def _first_of_pass(
    objective: Objective, model: Model, batch: Batch, state: ModelState | None, settings: Settings
) -> str | None:
    names: list[str] = []

    def on_output(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not names and not all(map(_finite, _floats(output))):
                names.append(f"the output of {name}")

        return hook

    def on_gradient(name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if not names and not _finite(gradient):
                names.append(f"the gradient of {name}")

        return hook

    hooks = [module.register_forward_hook(on_output(name)) for name, module in model.named_modules() if name]
    hooks += [each.register_hook(on_gradient(name)) for name, each in trainable_parameters(model).items()]
    devices = [settings.device] if settings.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
            with settings.context.activate():
                loss = objective(model, batch, ObjectiveContext(state))
            if not names and not _finite(loss.total):
                names.append("the cross-entropy")
            names += [f"the auxiliary loss {name}" for name, value in loss.auxiliary.items() if not _finite(value)]
            if not names:
                loss.objective.backward()
    finally:
        for handle in hooks:
            handle.remove()
    return names[0] if names else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _floats(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _floats(part)]
    return []
