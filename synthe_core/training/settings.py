"""How passes through the model are run on this machine: what the recipe asked for, with every `auto` decided."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from synthe_core.errors import InputError
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import prefer_kernels, use_kernels
from synthe_core.recipe.schema import RuntimeSpec


@dataclass
class Settings:
    """`micro_batch` counts full-length sequences per pass; training may lower it when memory runs out. `kernels` are
    the recipe's, which rule; `preferred` are those that were timed to be faster here (see `kernel_tuning`)."""

    device: torch.device
    kernels: dict[str, str]
    precision: str = "float32"
    micro_batch: int = 1
    preferred: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Every forward pass runs inside this: the chosen kernels, and autocast where bfloat16 was chosen."""
        with ExitStack() as stack:
            if self.kernels:
                stack.enter_context(use_kernels(**self.kernels))
            if self.preferred:
                stack.enter_context(prefer_kernels(**self.preferred))
            if self.precision == "bfloat16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            yield

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def settings(runtime: RuntimeSpec, hardware: Hardware) -> Settings:
    """The device and kernels of a recipe; InputError for what this machine has not, or a kernel that is in no table."""
    device = choose_device(runtime.device, hardware).value
    if runtime.compile and device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise InputError("runtime.compile needs a C++ compiler on a CPU", "install g++, or set runtime.compile=false")
    with use_kernels(**runtime.kernels):
        return Settings(torch.device(device), runtime.kernels)
