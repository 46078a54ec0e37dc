"""How training passes run on this machine: the recipe's runtime with every `auto` decided."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import torch

from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import Hardware
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.recipe.schema import Recipe


@dataclass
class Settings:
    """`micro_batch` counts full-length sequences per pass; training may lower it when memory runs out. Every forward
    pass runs inside `context.activate()`."""

    context: ExecutionContext
    micro_batch: int = 1

    @property
    def device(self) -> torch.device:
        return self.context.device

    @property
    def precision(self) -> str:
        return self.context.precision

    @precision.setter
    def precision(self, precision: str) -> None:
        self.context = replace(self.context, precision=precision)


def settings_for(recipe: Recipe, hardware: Hardware) -> Settings:
    """The device and kernels of a recipe; InputError for what this machine has not, or a kernel that is in no table."""
    context = context_for_recipe(recipe, recipe.runtime.device, hardware=hardware)
    on_cpu = context.device.type == "cpu"
    if recipe.runtime.compile and on_cpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise InputError("runtime.compile needs a C++ compiler on a CPU", "install g++, or set runtime.compile=false")
    return Settings(context)
