"""The optimizers: AdamW, or Muon for the matrices of the blocks and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.errors import InputError
from synthe_core.model.classifier import Model
from synthe_core.model.sharded_tensors import as_sharded, is_sharded, shard_of
from synthe_core.recipe.schema import TrainSpec
from synthe_core.training.muon import BatchedMuon

MUON_MOMENTUM = 0.95


class Optimizer:
    """One or two torch optimizers that step together, for the trainable parameters.

    Muon (Jordan et al. 2024) takes the weights of the linear maps inside blocks, with its updates scaled to AdamW's
    size (Liu et al. 2025), so that one learning rate serves both. AdamW takes embedding, head, convolutions, gains and
    gates. Weight decay applies to linear maps and the embedding only.
    """

    def __init__(self, model: Model, spec: TrainSpec) -> None:
        self.spec = spec
        self._parameters = trainable_parameters(model)
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        matrices = _matrices(model, nn.Linear, nn.Embedding)
        hidden = _matrices(model.blocks, nn.Linear)
        orthogonal = hidden if spec.optimizer == "muon" else set()
        rest = [p for p in self._names if p not in orthogonal]
        device = next(model.parameters()).device.type
        groups = [
            {"params": [p for p in rest if p in matrices], "weight_decay": spec.weight_decay},
            {"params": [p for p in rest if p not in matrices], "weight_decay": 0.0},
        ]
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if rest:
            self.parts["adamw"] = torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=spec.lr,
                betas=spec.betas,
                fused=device in ("cpu", "cuda", "mps"),
            )
        if orthogonal:
            self.parts["muon"] = BatchedMuon(
                [p for p in self._names if p in orthogonal],
                lr=spec.lr,
                weight_decay=spec.weight_decay,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
        self.parameters = list(self._names)

    def names(self, part: str) -> list[str]:
        """The parameters of "adamw" or "muon"."""
        return [self._names[p] for group in self.parts[part].param_groups for p in group["params"]]

    def step(self, rate: float) -> None:
        """One step at `rate` times the peak learning rate."""
        for optimizer in self.parts.values():
            for group in optimizer.param_groups:
                group["lr"] = self.spec.lr * rate
            optimizer.step()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state: `adamw.exp_avg.blocks.0...` -> tensor."""
        tensors: dict[str, Tensor] = {}
        for part, optimizer in self.parts.items():
            for parameter, name in self._names.items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{part}.{key}.{name}"] = value
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; InputError if the state is of other parameters."""
        states: dict[str, dict[str, dict[str, Tensor]]] = {part: {} for part in self.parts}
        for path in tensors:
            part, key, name = path.split(".", 2)
            if part not in states:
                raise InputError(f"the saved optimizer state is of {part}", "resume with the optimizer of the run")
            states[part].setdefault(name, {})[key] = self._own(name, tensors[path])
        for part, optimizer in self.parts.items():
            names = self.names(part)
            if unknown := set(states[part]) - set(names):
                raise InputError(f"the saved optimizer state has {min(unknown)}, which the model does not have")
            template: dict[str, Any] = optimizer.state_dict()
            template["state"] = {i: states[part][name] for i, name in enumerate(names) if name in states[part]}
            optimizer.load_state_dict(template)

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        """A saved tensor in memory of its own, of a sharded parameter this process's shard."""
        like = self._parameters.get(name)
        if is_sharded(tensor):
            return tensor
        if like is None or like.shape != tensor.shape:
            return tensor.clone()
        return as_sharded(shard_of(tensor, like).clone(), like)


def _matrices(module: nn.Module, *kinds: type[nn.Module]) -> set[Tensor]:
    """The weights of the linear maps, or other `kinds` of modules, inside `module`."""
    own = (parameter for m in module.modules() if isinstance(m, kinds) for parameter in m.parameters(recurse=False))
    return {parameter for parameter in own if parameter.dim() == 2}
