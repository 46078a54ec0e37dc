"""Linear maps that PEFT has wrapped, with the two further ways in which our learners use a map.

PEFT replaces a module by a layer that is called like it. Our learners also call `project` (see
`layers.projection.Linear`), and some read `weight` and compute with it; PEFT's layer has no `project`, and its `weight`
is the base's, without the adapter. `adopt` gives such layers a class with both.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.projection import Linear
from synthe_core.ops.linear import linear

PLAIN = "of PEFT's adapters, plain LoRA works here"


def adopt(model: nn.Module) -> None:
    """Gives every layer of PEFT in `model` that wraps a map of ours its class. InputError for another kind of adapter
    than LoRA."""
    from peft.tuners.lora.layer import Linear as LoraLinear
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, _Projecting):
            continue
        if isinstance(module.get_base_layer(), Linear):
            if type(module) is not LoraLinear or not isinstance(module.base_layer, Linear):
                raise InputError(f"{name} has an adapter of the class {type(module).__name__}", PLAIN)
            module.__class__ = _projecting(LoraLinear)


class _Projecting:
    """What is added to PEFT's class. y = W x + b + Σ s B A x over the active adapters."""

    def project(
        self: Any, x: Tensor, outputs: slice | None = None, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `layers.projection.Linear.project`."""
        y = self.base_layer.project(x, outputs, bias=bias, dtype=dtype)
        with torch.autocast(x.device.type, enabled=dtype is None and torch.is_autocast_enabled(x.device.type)):
            for name in self._applied():
                a, b = self.lora_A[name].weight, self.lora_B[name].weight
                low = linear(self.lora_dropout[name](x.to(a.dtype)), a)
                change = linear(low, b if outputs is None else b[outputs]) * self.scaling[name]
                y = y + change.to(y.dtype)
        return y

    @property
    def weight(self: Any) -> Tensor:
        """W + Σ s B A."""
        weight: Tensor = self.base_layer.weight
        for name in self._applied():
            weight = weight + self.get_delta_weight(name).to(weight.dtype)
        return weight

    def _applied(self: Any) -> list[str]:
        """The adapters that are added to the base's result now."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return []
        names = [] if self.merged else [name for name in self.active_adapters if name in self.lora_A]
        for name in names:
            if name in self.lora_variant or self.lora_B[name].bias is not None:
                raise InputError(f"the adapter '{name}' is a variant of LoRA", PLAIN)
        return names


@cache
def _projecting(layer: type[Any]) -> type[Any]:
    """The class `layer` of PEFT with what is added."""
    return type(layer.__name__, (_Projecting, layer), {"__module__": layer.__module__})
