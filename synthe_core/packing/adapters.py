"""Adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors, held against the base's tensors.

    base_model.model.MODULE.lora_A.weight [r, in]      base_model.model.MODULE.lora_B.weight [out, r]

PEFT's other parts are known by their names (embeddings, DoRA's magnitudes, modules that were trained whole). What made
the folder does not matter. Format: huggingface/peft, "PEFT checkpoint format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, closest
from synthe_core.packing.contents import Content, Stretch
from synthe_core.packing.manifest import Adapter
from synthe_core.packing.members import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NAME, shown
from synthe_core.storage.tensor_file import TensorFile

PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.weight|\.bias)?$"
)
Shape = Callable[[str], tuple[int, ...] | None]


def parse_named(text: str) -> tuple[str, Path]:
    """`NAME=FOLDER` of --adapter, or a folder whose own name serves."""
    name, equals, folder = text.partition("=")
    path = Path(folder if equals else text).expanduser()
    name = name if equals else path.resolve().name
    if not re.fullmatch(NAME, name):
        raise InputError(f"'{name}' is no name for an adapter", "as in --adapter code=runs/lora-code")
    return name, path


def adapter_members(name: str, folder: Path) -> dict[str, Content]:
    """The members that an adapter's folder becomes; InputError for a folder that is none."""
    found: dict[str, Content] = {}
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            pickled = file == ADAPTER_WEIGHTS and (folder / "adapter_model.bin").is_file()
            usual = f"an adapter is a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
            hint = "its weights are a pickle, and none is read: save them as safetensors" if pickled else usual
            raise InputError(f"{folder} is no adapter: it has no {file}", hint)
        found[f"adapters/{name}/{file}"] = Stretch.of(folder / file)
    return found


def adapters_in(names: Iterable[str]) -> list[str]:
    """The names of the adapters among the members of a file."""
    return sorted({name.split("/")[1] for name in names if name.startswith("adapters/")})


def check_adapter(name: str, config: Mapping[str, Any], file: TensorFile, shape: Shape | None) -> Adapter:
    """What the manifest says of an adapter; InputError where its tensors do not fit the base or each other.

    shape: gives the shape of a tensor of the base, None for one that it has not; None where there is no base at hand.
    """
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in file:
        module, part = _split(key)
        if shape is not None:
            _check_place(file, key, module, part, shape)
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
    found = PART.fullmatch(bare)
    if found:
        return found["module"], found["part"]
    return bare.rpartition(".")[0], "whole"  # a module that was trained itself


def _check_place(file: TensorFile, key: str, module: str, part: str, shape: Shape) -> None:
    """The base must have what a tensor of the adapter changes, in its size."""
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
            raise InputError(f"{file.name} has only one half of the pair of {module}", "the adapter is not whole")
        if down in parts:
            if len(parts[down]) != 2 or len(parts[up]) != 2 or parts[down][0] != parts[up][1]:
                raise InputError(f"the pair of {module} in {file.name} has two ranks", "the adapter is damaged")
            return parts[down][0]
    return None


def find_adapter(name: str, adapters: Mapping[str, Any]) -> None:
    """InputError for an adapter that is not packed, with the nearest that is."""
    if name not in adapters:
        near = closest(name, adapters)
        hint = f"did you mean '{near}'?" if near else "pack it too, with --adapter NAME=FOLDER"
        raise InputError(f"agent.yaml names the adapter {shown(name)}, which is not in the file", hint)
