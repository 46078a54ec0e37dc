"""An adapter of a published model, as PEFT trains it on the published maps, on the maps of our learners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.errors import InputError
from synthe_core.interop.published_shapes import Conversion

TOLERANCE = 1e-4  # of the largest number, for products whose sums have another order
HINT = "merge it into the model first: synthe merge linear MODEL+ADAPTER"


def on_learners(adapter: Adapter, model: Conversion, path: Path) -> Adapter:
    """The adapter with the same effect on our model.

    Where published matrices W_j make ours by f, linear in them and without mixing their columns, their changes
    s_j B_j A_j make f(.., s_j B_j, ..) A_j, whose rank is the sum of theirs. path: the adapter's, for messages.

    InputError for a map that the published model has not, or of another shape, and for one whose change has no low rank
    in our model.
    """
    if all(f"{name}.weight" in model.origins for name in adapter.maps):
        return adapter
    published = {f"{name}.weight": name for name in adapter.maps}
    for weight, name in published.items():
        adapter.check(name, torch.Size(model.published.shape(weight)) if weight in model.published else None, path)
    maps: dict[str, LowRank] = {}
    used: set[str] = set()
    for ours, origin in model.origins.items():
        names = [weight for weight in origin.names if weight in published]
        if names:
            changes = {weight: adapter.maps[published[weight]] for weight in names}
            maps[ours.removesuffix(".weight")] = _change(ours, changes, model, path)
            used |= {*names}
    for weight, name in published.items():
        if weight not in used:
            raise InputError(f"{path} changes {name}, which our learners have no use for", HINT)
    return Adapter(maps, adapter.dropout)


def _change(ours: str, changes: Mapping[str, LowRank], model: Conversion, path: Path) -> LowRank:
    """What the changes of some published matrices are to one of ours."""
    shape, factors = model.ours[ours], []
    for weight, change in changes.items():
        scaled = change.scaling * change.lora_B
        try:
            b = _made(ours, weight, scaled, model)
            whole = _made(ours, weight, scaled @ change.lora_A, model)
            fits = len(shape) == 2 and whole.shape == shape and _close(b @ change.lora_A, whole)
        except (RuntimeError, ValueError, IndexError):
            fits = False
        if not fits:
            name = weight.removesuffix(".weight")
            raise InputError(f"{path} changes {name}, whose change has no low rank in our learners", HINT)
        factors.append((change.lora_A, b))
    a, b = torch.cat([a for a, _ in factors]), torch.cat([b for _, b in factors], 1)
    return LowRank(a.contiguous(), b.contiguous(), 1.0)


def _made(ours: str, weight: str, value: Tensor, model: Conversion) -> Tensor:
    """Our tensor, of `value` in the place of one published matrix and zeros in that of the others."""
    parts = []
    for name in model.origins[ours].names:
        rows, *others = model.published.shape(name)
        columns = value.shape[1:] if len(others) == 1 else others
        parts.append(value if name == weight else value.new_zeros(rows, *columns))
    return model.origins[ours].made(parts)


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
