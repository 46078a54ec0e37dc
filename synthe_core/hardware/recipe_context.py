"""The ExecutionContext of a recipe's model on this machine."""

from __future__ import annotations

import torch

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.kernel_tuning import tuned_kernels
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.ops import activations, linear, scaled_dot_product_attention  # noqa: F401  (they register themselves)
from synthe_core.ops.dispatch import batch_invariant_on, check_kernels
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
    batch_invariant: whether passes are to be; they are not on a device without such kernels, nor where the recipe
            forces a kernel that is not.
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
        batch_invariant=batch_invariant and batch_invariant_on(device.type, runtime.kernels),
        threads=runtime.threads,
    )
