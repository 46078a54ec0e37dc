"""The parts of a model that a stage of training may leave out, by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from synthe_core.layers import LAYERS


class Part(NamedTuple):
    """The paths under which a part runs (see `Pass.path`), and the prefixes of its tensors' names."""

    paths: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


def parts(spec: Any) -> dict[str, Part]:
    """The parts of a model by name.

    `delta` is that learner in every block, norm included; `multiscale_memory.tier3` an optional part of a learner (see
    `Learner.parts`); `depth` the router; `confidence` the head of that name.
    """
    named: dict[str, Part] = {}

    def add(name: str, path: str, *prefixes: str) -> None:
        before = named.get(name, Part())
        named[name] = Part((*before.paths, path), (*before.prefixes, *prefixes))

    for block in range(spec.blocks):
        for place, entry in enumerate(spec.learners_of(block)):
            path, tensors = f"blocks.{block}.{place}", f"blocks.{block}.learners.{place}."
            add(entry.type, path, tensors, *(f"blocks.{block}.{norms}.{place}." for norms in ("norms", "post_norms")))
            for name, modules in LAYERS[entry.type].parts(entry).items():
                add(f"{entry.type}.{name}", f"{path}.{modules[0]}", *(f"{tensors}{module}." for module in modules))
    for name, module, present in (("depth", "router", spec.depth), ("confidence", "confidence", spec.confidence)):
        if present is not None:
            add(name, module, f"{module}.")
    return named


def without_parts(spec: Any, without: Collection[str]) -> Any:
    """The specification `spec` without these parts."""
    kinds = [[_without(entry, without) for entry in kind if entry.type not in without] for kind in spec.kinds]
    block = kinds if isinstance(spec.block[0], list) else kinds[0]
    removed = {name: None for name in ("depth", "confidence") if name in without}
    return spec.model_copy(update={"block": block, **removed})


def _without(entry: Any, without: Collection[str]) -> Any:
    return LAYERS[entry.type].without_parts(entry, omitted(entry, without))


def omitted(entry: Any, without: Collection[str]) -> list[str]:
    """The optional parts of the learner `entry` that are left out."""
    return [name for name in LAYERS[entry.type].parts(entry) if f"{entry.type}.{name}" in without]


def missing_dependency(spec: Any, without: Collection[str]) -> tuple[str, str] | None:
    """A part that runs, and a part that it needs and that is left out; None without such a pair."""
    for entry in spec.learners:
        left_out = omitted(entry, without)
        names = list(LAYERS[entry.type].parts(entry))
        for name in names[names.index(left_out[0]) :] if left_out else ():
            if name not in left_out:
                return f"{entry.type}.{name}", f"{entry.type}.{left_out[0]}"
    return None
