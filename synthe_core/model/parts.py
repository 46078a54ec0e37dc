"""The parts of a model that training may leave out for a while, by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from synthe_core.layers import LAYERS


class Part(NamedTuple):
    """Everywhere that a part runs (see `Pass.path`), and what the names of its tensors begin with."""

    paths: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


def parts(spec: Any) -> dict[str, Part]:
    """The parts of a model by name.

    `delta` is that learner in every block, norm included; `multiscale_memory.tier3` an optional part of a learner (see
    `Learner.parts`); `depth` the router; `confidence` the head of that name.
    """
    found: dict[str, Part] = {}

    def add(name: str, path: str, *prefixes: str) -> None:
        before = found.get(name, Part())
        found[name] = Part((*before.paths, path), (*before.prefixes, *prefixes))

    for block in range(spec.blocks):
        for place, entry in enumerate(spec.block):
            path, tensors = f"blocks.{block}.{place}", f"blocks.{block}.learners.{place}."
            add(entry.type, path, tensors, f"blocks.{block}.norms.{place}.")
            for name, modules in LAYERS[entry.type].parts(entry).items():
                add(f"{entry.type}.{name}", f"{path}.{modules[0]}", *(f"{tensors}{module}." for module in modules))
    for name, module, there in (("depth", "router", spec.depth), ("confidence", "confidence", spec.confidence)):
        if there is not None:
            add(name, module, f"{module}.")
    return found


def without_parts(spec: Any, without: Collection[str]) -> Any:
    """The model that is left of `spec` without these parts."""
    block = []
    for entry in spec.block:
        if entry.type not in without:
            learner = LAYERS[entry.type]
            block.append(learner.without_parts(entry, omitted(entry, without)))
    gone = {name: None for name in ("depth", "confidence") if name in without}
    return spec.model_copy(update={"block": block, **gone})


def omitted(entry: Any, without: Collection[str]) -> list[str]:
    """Of what the learner `entry` can do without, what is left out."""
    return [name for name in LAYERS[entry.type].parts(entry) if f"{entry.type}.{name}" in without]


def missing_dependency(spec: Any, without: Collection[str]) -> tuple[str, str] | None:
    """A part that is to run, and one that it builds on and that is left out; None where there is no such pair."""
    for entry in spec.block:
        left_out = omitted(entry, without)
        names = list(LAYERS[entry.type].parts(entry))
        for name in names[names.index(left_out[0]) :] if left_out else ():
            if name not in left_out:
                return f"{entry.type}.{name}", f"{entry.type}.{left_out[0]}"
    return None
