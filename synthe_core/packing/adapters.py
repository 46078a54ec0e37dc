"""Adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors, checked against the base's tensors.

    base_model.model.MODULE.lora_A.weight [r, in]      base_model.model.MODULE.lora_B.weight [out, r]

PEFT's other tensors are known by name (embeddings, DoRA's magnitudes, modules that were trained as a whole). Format:
huggingface/peft, "PEFT checkpoint format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, closest
from synthe_core.interop.hub import local_path
from synthe_core.packing.contents import Content, FileRange
from synthe_core.packing.manifest import Adapter
from synthe_core.packing.members import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NAME, quoted
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.storage.named_path import split_named
from synthe_core.storage.tensor_file import TensorFile

PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.weight|\.bias)?$"
)
Shape = Callable[[str], tuple[int, ...] | None]


def parse_named(text: str) -> tuple[str, Path]:
    """NAME and FOLDER of `--adapter NAME=FOLDER`, or NAME=ORG/NAME of the hub; the name defaults to the folder's."""
    given, path = split_named(text)
    path = local_path(path, weights_only=True)
    name = model_name(path) if given is None else given
    if not re.fullmatch(NAME, name):
        raise InputError(f"'{name}' is not a valid name for an adapter", "as in --adapter code=runs/lora-code")
    return name, path


def adapter_members(name: str, folder: Path) -> dict[str, Content]:
    """The members of a .synapse file for an adapter's folder. InputError if it is not an adapter."""
    members: dict[str, Content] = {}
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            pickled = file == ADAPTER_WEIGHTS and (folder / "adapter_model.bin").is_file()
            layout = f"an adapter is a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
            hint = "its weights are a pickle, which is not read: save them as safetensors" if pickled else layout
            raise InputError(f"{folder} is not an adapter: it has no {file}", hint)
        members[f"adapters/{name}/{file}"] = FileRange.of(folder / file)
    return members


def adapters_in(names: Iterable[str]) -> list[str]:
    """The names of the adapters among the members of a file."""
    return sorted({name.split("/")[1] for name in names if name.startswith("adapters/")})


def check_adapter(name: str, config: Mapping[str, Any], file: TensorFile, shape: Shape | None) -> Adapter:
    """What the manifest says of an adapter; InputError where its tensors do not fit the base or each other.

    shape: returns the shape of a tensor of the base, None if it has no such tensor. None without the base.
    """
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in file:
        module, part = _split(key)
        if shape is not None:
            _check_target(file, key, module, part, shape)
        modules.setdefault(module, {})[part] = file.shape(key)
    if not modules:
        raise InputError(f"{file.name} holds no tensors", "it is no adapter")
    ranks = {rank for module, parts in modules.items() if (rank := _rank(file, module, parts)) is not None}
    alpha = config.get("lora_alpha")
    return Adapter(
        name=name,
        rank=ranks.pop() if len(ranks) == 1 else None,
        alpha=float(alpha) if isinstance(alpha, (int, float)) and math.isfinite(alpha) else None,
        modules=sorted(modules),
        parameters=sum(math.prod(file.shape(key)) for key in file),
        checked=shape is not None,
    )


def _split(key: str) -> tuple[str, str]:
    bare = key.removeprefix(PREFIX)
    match = PART.fullmatch(bare)
    if match:
        return match["module"], match["part"]
    return bare.rpartition(".")[0], "whole"  # a module that was trained as a whole


def _check_target(file: TensorFile, key: str, module: str, part: str, shape: Shape) -> None:
    """InputError unless the base has the tensor that the adapter changes, in a matching shape."""
    own = file.shape(key)
    target = key.removeprefix(PREFIX) if part == "whole" else f"{module}.weight"
    base = shape(target)
    if base is None:
        raise InputError(f"{file.name} changes {target}, which the model has not", "it was made for another model")
    side = {"lora_A": (1, -1), "lora_B": (0, 0), "lora_embedding_A": (1, 0), "lora_embedding_B": (0, -1)}.get(part)
    if side is None:
        fits = own == base if part == "whole" else math.prod(own) in (base[0], base[-1])
    else:
        fits = len(own) == 2 and len(base) >= 2 and own[side[0]] == base[side[1]]
    if not fits:
        raise InputError(
            f"{key} is {list(own)} in {file.name}, which does not fit {target} {list(base)}",
            "it was made for another model",
        )


def _rank(file: TensorFile, module: str, parts: Mapping[str, tuple[int, ...]]) -> int | None:
    for down, up in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        if (down in parts) != (up in parts):
            raise InputError(f"{file.name} has only one half of the pair of {module}", "the adapter is incomplete")
        if down in parts:
            if len(parts[down]) != 2 or len(parts[up]) != 2 or parts[down][0] != parts[up][1]:
                raise InputError(f"the pair of {module} in {file.name} has two ranks", "the adapter is damaged")
            return parts[down][0]
    return None


def find_adapter(name: str, adapters: Mapping[str, Any]) -> None:
    """InputError if agent.yaml names an adapter that is not in the file, with the nearest name as the hint."""
    if name not in adapters:
        near = closest(name, adapters)
        hint = f"did you mean '{near}'?" if near else "pack it too, with --adapter NAME=FOLDER"
        raise InputError(f"agent.yaml names the adapter {quoted(name)}, which is not in the file", hint)
