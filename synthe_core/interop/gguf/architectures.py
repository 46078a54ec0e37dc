"""The architecture of a GGUF file, and the names of its tensors here and there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from synthe_core.errors import InputError, unknown
from synthe_core.interop.gguf.families import ARCHITECTURES
from synthe_core.interop.gguf.families.architecture import Architecture, Names
from synthe_core.interop.gguf.metadata import Metadata

IGNORED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors whose meaning is in the config."""


class Place(NamedTuple):
    """Where a tensor is in a file: the names of those that it is made of, and which part of each along its first
    dimension; None for all of it."""

    names: tuple[str, ...]
    part: int | None = None


def architecture_of(data: Metadata) -> Architecture:
    """InputError for one that is not in the table."""
    if not data.architecture:
        raise InputError(f"{data.path} names no architecture", "it is no model: general.architecture is missing")
    if data.architecture not in ARCHITECTURES:
        raise unknown("GGUF architecture", data.architecture[:80], ARCHITECTURES)
    return ARCHITECTURES[data.architecture]


def stored_names(architecture: Architecture, layers: int, theirs: Collection[str]) -> dict[str, str]:
    """For each of transformers' names in `theirs` its name in a file. Without experts."""
    names: dict[str, str] = {}
    for name, place in _places(architecture.names, layers, 0):
        (stored,) = place.names
        for suffix in (".weight", ".bias", ""):
            if name + suffix in theirs:
                names[name + suffix] = stored + suffix
    return names


def tensor_names(architecture: Architecture, data: Metadata, experts: int) -> dict[str, Place]:
    """transformers' names of the tensors in a file, with their places there. InputError for one that no name is known
    of. Layers that predict further tokens are left out, as transformers leaves them out."""
    names: dict[str, Place] = {}
    for name, place in _places({**architecture.names, **architecture.more(data)}, data.layers(), experts):
        for suffix in (".weight", ".bias", ""):
            stored = tuple(each + suffix for each in place.names)
            if all(each in data.file for each in stored):
                names[name + suffix] = Place(stored, place.part)
    used = {each for place in names.values() for each in place.names}
    further = tuple(f"blk.{i}." for i in range(data.layers(), data.size("block_count")))
    unused = {each for each in data.file if not each.startswith(further)} - used - set(IGNORED)
    if unused:
        raise InputError(
            f"{data.path} has a tensor {min(unused)[:80]}, which its architecture has not",
            "it is another architecture, or one with additions that synthe does not know",
        )
    return names


def _places(names: Names, layers: int, experts: int) -> Iterator[tuple[str, Place]]:
    for name, place in names.items():
        for i in range(layers if "{i}" in name else 1):
            places = (place,) if isinstance(place, str) else place
            stored, given = tuple(each.replace("{i}", str(i)) for each in places), name.replace("{i}", str(i))
            if "{e}" not in name:
                yield given, Place(stored)
            for expert in range(experts if "{e}" in name else 0):
                yield given.replace("{e}", str(expert)), Place(stored, expert)
