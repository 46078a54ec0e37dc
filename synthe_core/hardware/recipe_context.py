"""The ExecutionContext of a recipe's model on this machine."""

from __future__ import annotations

import torch

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.kernel_tuning import tuned_kernels
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.ops.dispatch import check_kernels
from synthe_core.recipe.schema import Recipe


def context_for_recipe(
    recipe: Recipe,
    device: str | torch.device = "auto",
    *,
    hardware: Hardware | None = None,
    batch_invariant: bool = False,
) -> ExecutionContext:
    """Float32, the recipe's `runtime.kernels` and `runtime.threads`, and the kernels that were tuned for it here.

    device: a name as in `runtime.device`, or the torch device that the model is on already. InputError for a device
    that this machine does not have, and for an operator or a kernel that does not exist.
    """
    hardware = hardware or probe()
    runtime = recipe.runtime
    check_kernels(runtime.kernels)
    if isinstance(device, str):
        device = torch.device(choose_device(device, hardware).value)
    return ExecutionContext(
        device=device,
        kernels=runtime.kernels,
        tuned_kernels=tuned_kernels(recipe, device.type, hardware),
        batch_invariant=batch_invariant,
        threads=runtime.threads,
    )
