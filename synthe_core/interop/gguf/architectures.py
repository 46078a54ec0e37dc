"""The architecture of a GGUF file, and the names of its tensors here and there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synthe_core.errors import InputError
from synthe_core.interop.gguf.families import ARCHITECTURES, rwkv7
from synthe_core.interop.gguf.families.architecture import Architecture, Place
from synthe_core.interop.gguf.metadata import Metadata

IGNORED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", *rwkv7.IGNORED)
"""Tensors whose meaning is in the config, and those that nothing reads."""


def architecture_of(data: Metadata) -> Architecture:
    """InputError for one that is not in the table."""
    if not data.architecture:
        raise InputError(f"{data.path} names no architecture", "it is no model: general.architecture is missing")
    if data.architecture not in ARCHITECTURES:
        name = " ".join(data.architecture[:80].split())
        raise InputError(
            f"{data.path} is of the GGUF architecture '{name}', which is not read",
            f"give the folder that it was made from (config.json, safetensors); read are {', '.join(ARCHITECTURES)}",
        )
    return ARCHITECTURES[data.architecture]


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""The keys of configs for their number."""


def number_of_experts(config: Mapping[str, Any]) -> Any:
    return next((config[key] for key in EXPERTS if key in config), 0)


def file_config(architecture: Architecture, data: Metadata, vocab: int) -> dict[str, Any]:
    """The config.json that a file stands for."""
    values = architecture.config(data)
    return values | {"tie_word_embeddings": "output.weight" not in data.file, "vocab_size": vocab}


def tensor_names(architecture: Architecture, data: Metadata, experts: int) -> dict[str, Place]:
    """transformers' names of the tensors in a file, with their places there. InputError for one that no name is known
    of. Layers that predict further tokens are left out, as transformers leaves them out."""
    names: dict[str, Place] = {}
    for name, place in tensor_places(architecture, data, experts):
        for suffix in (".weight", ".bias", ""):
            stored = tuple(each + suffix for each in place.names)
            if all(each in data.file for each in stored):
                names[name + suffix] = Place(stored, place.part)
    used = {each for place in names.values() for each in place.names}
    further = tuple(f"blk.{i}." for i in range(data.layers(), data.size("block_count")))
    unused = {each for each in data.file if not each.startswith(further)} - used - set(IGNORED)
    if unused:
        raise InputError(
            f"{data.path} has a tensor {min(unused)[:80]!r}, which its architecture has not",
            "it is another architecture, or one with additions that synthe does not know",
        )
    return names


def tensor_places(architecture: Architecture, data: Metadata, experts: int) -> Iterator[tuple[str, Place]]:
    """transformers' name of every tensor that a file may have, without a suffix, and its place there."""
    layers = data.layers()
    for name, place in {**architecture.names, **architecture.more(data)}.items():
        for i in range(layers if "{i}" in name else 1):
            places = (place,) if isinstance(place, str) else place.names if isinstance(place, Place) else place
            part = place.part if isinstance(place, Place) else None
            stored, given = tuple(each.replace("{i}", str(i)) for each in places), name.replace("{i}", str(i))
            if "{e}" not in name:
                yield given, Place(stored, part)
            for expert in range(experts if "{e}" in name else 0):
                yield given.replace("{e}", str(expert)), Place(stored, expert)
