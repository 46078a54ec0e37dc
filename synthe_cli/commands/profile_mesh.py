"""`synthe profile-vram --mesh`: the memory of one of several processes, and what it sends in a step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from synthe_cli import figures
from synthe_core.errors import InputError, unknown
from synthe_core.units import format_size

if TYPE_CHECKING:
    from synthe_core.hardware.probe import Hardware
    from synthe_core.profiling.footprint import Footprint
    from synthe_core.profiling.sharded import Held
    from synthe_core.profiling.traffic import Traffic
    from synthe_core.recipe.schema import Recipe

KEYS = ("replicate", "shard", "sequence")


def with_mesh(recipe: Recipe, text: str) -> Recipe:
    """The recipe on a mesh as `replicate=1,shard=4`. InputError for another text."""
    sizes = {"replicate": 1, "shard": 1, "sequence": 1}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key not in KEYS:
            raise unknown("part of a mesh", key, KEYS)
        if not value.isdecimal() or not int(value):
            raise InputError(f"--mesh: {key} is a number of processes, not '{value}'", "--mesh replicate=1,shard=4")
        sizes[key] = int(value)
    mesh = recipe.runtime.mesh.model_copy(update=sizes)
    return recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"mesh": mesh})})


def profile_mesh(recipe: Recipe, machine: Hardware, rows: int | None, measure: bool, as_json: bool) -> None:
    """Prints the footprint of one process of the recipe's mesh, and what is measured, with --measure."""
    from synthe_core.profiling.footprint import Estimate
    from synthe_core.profiling.sharded import measure_in_shards, mesh_of, step_traffic, training_in_shards

    mesh = mesh_of(recipe)
    share = recipe.train.batch // mesh.rows
    given = recipe.train.micro_batch
    rows = min(share, rows or (given if isinstance(given, int) else share))
    estimate = Estimate(recipe, machine)
    footprint, sent = training_in_shards(estimate, rows), step_traffic(estimate, rows)
    held = None
    if measure:
        if estimate.settings.device.type != "cpu":
            raise InputError("--mesh measures processes on CPUs", "--device cpu")
        held = measure_in_shards(recipe, rows=rows, length=footprint.length, precision=footprint.precision)
    if as_json:
        print(json.dumps(_plain(footprint, sent, held) | {"processes": mesh.size}))
    else:
        print(_shown(recipe, footprint, sent, held, mesh.describe()))


def _plain(footprint: Footprint, sent: Traffic, held: Held | None) -> dict[str, Any]:
    parts = {name: round(size) for name, size in footprint.parts.items()}
    values: dict[str, Any] = {"rows": footprint.rows, "length": footprint.length, "peak": round(footprint.peak)}
    values |= {"parts": parts, "sent": {"reduced": round(sent.reduced), "gathered": round(sent.gathered)}}
    values["sent"] |= {"updates": round(sent.updates), "total": round(sent.total)}
    return values if held is None else values | {"measured": held._asdict()}


def _shown(recipe: Recipe, footprint: Footprint, sent: Traffic, held: Held | None, mesh: str) -> str:
    head = f"{recipe.name}, training{mesh}: each {footprint.rows} sequences per pass of {footprint.length:,} tokens"
    measured = {} if held is None else held._asdict()
    rows = [
        [f"  {name}", format_size(size), format_size(measured[name]) if name in measured else ""]
        for name, size in footprint.parts.items()
        if size
    ]
    peak = measured.get("peak")
    rows.append(["  peak", format_size(footprint.peak), "" if peak is None else format_size(peak)])
    title = ["", "predicted", "" if held is None else "measured"]
    lines = [head, figures.table(title, rows), f"  sent in a step: {format_size(sent.total)} a process"]
    if peak is not None:
        lines.append(f"  the prediction is off by {footprint.peak / peak - 1:+.1%}")
    return "\n".join(lines)
