"""Adapters on disk, in the format of the library PEFT: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from synthe_core.adapters.lora import FACTORS, Adapter, LowRank
from synthe_core.adapters.peft_config import CONFIG as CONFIG
from synthe_core.adapters.peft_config import PLAIN, PeftConfig, read_config
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.storage.tensor_file import save_tensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE_DIGEST = "base_sha256"
"""The key, in the metadata of the factors, of the digest of the base's weights."""


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    spec: LoraSpec,
    base: str,
    base_digest: str | None = None,
    revision: str | None = None,
) -> None:
    """Writes the factors `tensors` (see `Adapter.tensors`); `base` is where PEFT finds the model, at a `revision` if it
    is on the hub, and `base_digest` identifies its weights: PEFT takes no other keys in the configuration, so that it
    is in the metadata of the factors.
    """
    ranks = {name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in tensors.items() if ".lora_A." in name}
    smaller = {name: rank for name, rank in ranks.items() if rank != spec.rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        **({"revision": revision} if revision else {}),
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
    digest = {BASE_DIGEST: base_digest} if base_digest else {}
    save_tensors(plain, folder / WEIGHTS, {"format": "pt"} | digest)


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
    return Adapter({name: _change(name, pair, config, weights_path) for name, pair in factors.items()}, config.dropout)


def _change(name: str, pair: Mapping[str, Tensor], config: PeftConfig, path: Path) -> LowRank:
    for factor in FACTORS:
        if factor not in pair:
            raise InputError(f"{path} has no {factor} of {name}", "the adapter is damaged")
        if pair[factor].dim() != 2 or not pair[factor].is_floating_point():
            raise InputError(f"{path}: {factor} of {name} is no matrix of numbers", "the adapter is damaged")
        if not bool(torch.isfinite(pair[factor]).all()):
            raise InputError(f"{path}: {factor} of {name} is not finite", "its training went wrong: use another")
    a, b = (pair[factor].float() for factor in FACTORS)
    rank = config.rank(name)
    if not a.shape[0] == b.shape[1] == rank:
        raise InputError(
            f"{path}: {name} has factors {list(a.shape)} and {list(b.shape)}, and the config gives it rank {rank}",
            "the adapter is damaged",
        )
    return LowRank(a, b, config.scaling(name, a.shape[0]))


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
