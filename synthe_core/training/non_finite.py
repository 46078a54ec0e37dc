"""Which tensor went bad first, when a loss or a gradient is no longer a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.data.stream import Batch
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.state import map_leaves
from synthe_core.training.settings import Settings


def first_bad(model: LanguageModel, batch: Batch, settings: Settings, sequence: int, carried: ModelState | None) -> str:
    """The first tensor that is not finite, in words: a weight, what a module computes, or a gradient.

    The batch is read again pass by pass, with a listener on every module. Gradients must still be those of the batch.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name}"
    for first in range(0, batch.inputs.shape[0], settings.micro_batch):
        rows = slice(first, first + settings.micro_batch)
        inputs, targets = (t[rows].to(settings.device) for t in batch)
        state = None
        if carried is None:
            inputs, targets = inputs.reshape(-1, sequence), targets.reshape(-1, sequence)
        else:
            state = map_leaves(lambda leaf, rows=rows: leaf[rows], carried)
        if found := _first_output(model, inputs, targets, state, settings):
            return found
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name}"
    return "the norm of the gradient, though no single gradient"


@torch.no_grad()
def _first_output(
    model: LanguageModel, inputs: Tensor, targets: Tensor, state: ModelState | None, settings: Settings
) -> str | None:
    bad: list[str] = []

    def listen(name: str, module: nn.Module) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not bad and not all(map(_finite, _floats(output))):
                bad.append(name)

        return module.register_forward_hook(hook)

    hooks = [listen(name, module) for name, module in model.named_modules() if name]
    try:
        devices = [settings.device] if settings.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"), settings.in_force():
            loss, _ = model.loss(inputs, targets, state)
    finally:
        for hook in hooks:
            hook.remove()
    if bad:
        return f"the output of {bad[0]}"
    if not _finite(loss.total):
        return "the cross-entropy"
    return next((f"the auxiliary loss {name}" for name, value in loss.auxiliary.items() if not _finite(value)), None)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _floats(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _floats(part)]
    return []
