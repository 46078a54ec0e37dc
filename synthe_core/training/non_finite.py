"""Which tensor went bad first, when a loss or a gradient is no longer a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.data.stream import Batch
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import ModelState
from synthe_core.state import map_leaves
from synthe_core.training.gradients import moved, pieces
from synthe_core.training.settings import Settings


def first_bad(model: Model, batch: Batch, settings: Settings, sequence: int, carried: ModelState | None) -> str:
    """The first tensor that is not finite, in words: a weight, what a module computes, a loss, or a gradient.

    The batch is run again, pass by pass, forward and backward, with a listener on every module and every weight.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name}"
    for first in range(0, batch.inputs.shape[0], settings.micro_batch):
        rows = slice(first, first + settings.micro_batch)
        state, whole = None, sequence
        if carried is not None:
            state, whole = map_leaves(lambda leaf, rows=rows: leaf[rows], carried), batch.inputs.shape[1]
        for piece in pieces(batch, rows, whole, carry=False):
            if found := _first_of_pass(model, moved(piece, settings.device), state, settings):
                return found
    return "the norm of the gradient, though no single gradient,"


def _first_of_pass(model: Model, batch: Batch, state: ModelState | None, settings: Settings) -> str | None:
    bad: list[str] = []

    def listen(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not bad and not all(map(_finite, _floats(output))):
                bad.append(f"the output of {name}")

        return hook

    def listen_back(name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if not bad and not _finite(gradient):
                bad.append(f"the gradient of {name}")

        return hook

    hooks = [module.register_forward_hook(listen(name)) for name, module in model.named_modules() if name]
    hooks += [each.register_hook(listen_back(name)) for name, each in trainable_parameters(model).items()]
    devices = [settings.device] if settings.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
            with settings.context.activate():
                loss, _ = model.loss(batch.inputs, batch.targets, state, batch.lengths)
            if not bad and not _finite(loss.total):
                bad.append("the cross-entropy")
            bad += [f"the auxiliary loss {name}" for name, value in loss.auxiliary.items() if not _finite(value)]
            if not bad:
                loss.objective.backward()
    finally:
        for handle in hooks:
            handle.remove()
    return bad[0] if bad else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _floats(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _floats(part)]
    return []
