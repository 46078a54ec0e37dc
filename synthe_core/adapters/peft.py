"""Adapters on disk, in the format of the library PEFT: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from synthe_core.adapters.lora import FACTORS, Adapter, LowRank
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FOREIGN = (
    "use_dora", "lora_bias", "modules_to_save", "fan_in_fan_out", "use_qalora", "layer_replication", "use_bdlora",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "kasa_config", "arrow_config",
)  # fmt: skip
"""Keys of PEFT that make an adapter more than W + s B A."""
PLAIN = "only plain LoRA is read: W + s B A"


def write(folder: Path, tensors: Mapping[str, Tensor], spec: LoraSpec, base: str) -> None:
    """Writes the factors `tensors` (see `Adapter.tensors`); `base` is where PEFT finds the model."""
    ranks = {name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in tensors.items() if ".lora_A." in name}
    smaller = {name: rank for name, rank in ranks.items() if rank != spec.rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": _plain(spec.scaling * spec.divisor(spec.rank)),
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "target_modules": sorted(ranks),
        "rank_pattern": {re.escape(name): rank for name, rank in smaller.items()},
        "alpha_pattern": {re.escape(name): _plain(spec.scaling * spec.divisor(rank)) for name, rank in smaller.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    plain = {f"{PREFIX}{name}": t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json; InputError where it is damaged or asks for what is not W + s B A."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "the adapter is damaged") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"{path} is of {kind or 'no adapter'}, and only LORA is read", "train one with --lora")
    if config.get("bias", "none") != "none":
        raise InputError(f"{path}: bias '{config['bias']}' is not read", "only adapters with bias 'none' are")
    for key in FOREIGN:
        if config.get(key):
            raise InputError(f"{path}: {key} is not read", PLAIN)
    return config


def read(config_path: Path, weights_path: Path) -> Adapter:
    """The adapter of the two files; InputError that names what is wrong with it."""
    config = read_config(config_path)
    factors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(weights_path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                name, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
                if not key.startswith(PREFIX) or not key.endswith(".weight") or factor not in FACTORS:
                    raise InputError(f"{weights_path} has a tensor {key}, which is no factor of LoRA", PLAIN)
                factors.setdefault(name, {})[factor] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights_path} is damaged: {error}", "use another") from None
    return Adapter(
        {name: _change(name, pair, config, weights_path) for name, pair in factors.items()}, _dropout(config)
    )


def _change(name: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> LowRank:
    for factor in FACTORS:
        if factor not in pair:
            raise InputError(f"{path} has no {factor} of {name}", "the adapter is damaged")
        if pair[factor].dim() != 2 or not pair[factor].is_floating_point():
            raise InputError(f"{path}: {factor} of {name} is no matrix of numbers", "the adapter is damaged")
        if not bool(torch.isfinite(pair[factor]).all()):
            raise InputError(f"{path}: {factor} of {name} is not finite", "its training went wrong: use another")
    a, b = (pair[factor].float() for factor in FACTORS)
    rank = _pattern(config, "rank", name, "r")
    if not a.shape[0] == b.shape[1] == rank:
        raise InputError(
            f"{path}: {name} has factors {list(a.shape)} and {list(b.shape)}, and the config gives it rank {rank}",
            "the adapter is damaged",
        )
    return LowRank(
        a, b, _pattern(config, "alpha", name, "lora_alpha") / (rank**0.5 if config.get("use_rslora") else rank)
    )


def _pattern(config: Mapping[str, Any], kind: str, name: str, default: str) -> float:
    """The rank or alpha of a module: the first pattern that its name ends in, else the adapter's."""
    number: Any = config.get(default)
    patterns = config.get(f"{kind}_pattern") or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{CONFIG}: {kind}_pattern is no mapping", "it is damaged")
    for pattern, value in patterns.items():
        literal = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".").replace("\\_", "_")
        if set(literal) & set("*+?()[]{}|\\^$"):
            raise InputError(f"{CONFIG}: the {kind}_pattern '{pattern}' is not read", "write out the modules' names")
        if name == literal or name.endswith(f".{literal}"):
            number = value
            break
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
        raise InputError(f"{CONFIG}: {default} of {name} is {number}, which is no positive number", "it is damaged")
    return number


def _dropout(config: Mapping[str, Any]) -> float:
    dropout = config.get("lora_dropout", 0.0)
    return float(dropout) if isinstance(dropout, (int, float)) and 0 <= dropout < 1 else 0.0


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
