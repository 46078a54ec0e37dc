"""Mamba, Falcon Mamba and Mamba-2: one mixer a layer."""

from __future__ import annotations

import math
from typing import Any

from synthe_core.interop.huggingface.families import fla
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, norm, origin
from synthe_core.interop.huggingface.published import Config


def mamba(config: Config) -> Plan:
    return _mamba(config)


def falcon_mamba(config: Config) -> Plan:
    """Mamba with norms on Δ, B and C, which have no weights."""
    return _mamba(config, bc_dt_norm=True, norm_eps=config.number("mixer_rms_eps", 1e-6))


def _mamba(config: Config, **options: Any) -> Plan:
    spec = {
        "type": "mamba",
        "state_size": config.size("state_size", 16),
        "dt_rank": None if config.get("time_step_rank") == "auto" else config.get("time_step_rank"),
        **options,
    }
    return _state_space(config, spec)


def mamba2(config: Config) -> Plan:
    channels = config.size("expand", 2) * config.size("hidden_size")
    heads, size = config.size("num_heads", 128), config.size("head_dim", 64)
    if heads * size != channels:
        raise config.unsupported("num_heads", heads, [f"{channels / size:g}, which is expand * hidden_size / head_dim"])
    spec = {
        "type": "mamba2",
        "state_size": config.size("state_size", 128),
        "head_size": size,
        "groups": config.size("n_groups", 8),
        "time_step_limit": time_step_limit(config),
        "norm_eps": config.number("layer_norm_epsilon", 1e-5),
    }
    return _state_space(config, spec)


def mamba2_of_either(config: Config) -> Plan:
    """Two libraries publish Mamba-2 under one name, with other keys."""
    return fla.mamba2(config) if "dt_limit" in config.values else mamba2(config)


def time_step_limit(config: Config) -> list[Any]:
    return [_finite(limit) for limit in config.items("time_step_limit", [0.0, math.inf], 2)]


def mixer_tensors(spec: dict[str, Any], place: str) -> dict[str, Origin]:
    """The tensors of a `mamba` or `mamba2` below a published name: its parameters are ours by name."""
    names = ["A_log", "D", "in_proj.weight", "conv1d.weight", "out_proj.weight"]
    if spec["type"] == "mamba":
        names += ["x_proj.weight", "dt_proj.weight", "dt_proj.bias"]
        if spec.get("bc_dt_norm") == "weighted":
            names += ["dt_layernorm.weight", "b_layernorm.weight", "c_layernorm.weight"]
    else:
        names += ["dt_bias"] + ([] if spec.get("norm") == "none" else ["norm.weight"])
    names += [f"{part}_proj.bias" for part in ("in", "out") if spec["bias"] in (True, part)]
    names += ["conv1d.bias"] if spec["conv_bias"] else []
    return {name: origin(f"{place}.{name}") for name in names}


def _finite(limit: Any) -> Any:
    """A bound of time_step_limit, which JSON has no number for where there is none: None then."""
    return None if limit == math.inf or isinstance(limit, dict) else limit


def _state_space(config: Config, spec: dict[str, Any]) -> Plan:
    """One mixer a layer."""
    config.only("hidden_act", "silu", "swish")
    spec = {
        **spec,
        "expand": config.size("expand", 2),
        "conv": config.size("conv_kernel", 4),
        "bias": config.flag("use_bias", False),
        "conv_bias": config.flag("use_conv_bias", True),
    }
    layers = []
    for index in range(config.size("num_hidden_layers")):
        place = f"backbone.layers.{index}"
        layers.append([Part(spec, norm(f"{place}.norm"), mixer_tensors(spec, f"{place}.mixer"))])
    return Plan(
        layers,
        config.size("hidden_size"),
        config.size("vocab_size"),
        "backbone.embeddings.weight",
        norm("backbone.norm_f"),
        config.number("layer_norm_epsilon", 1e-5),
        config.flag("tie_word_embeddings", spec["type"] == "mamba"),
    )


ARCHITECTURES: Architectures = {
    "FalconMambaForCausalLM": falcon_mamba,
    "Mamba2ForCausalLM": mamba2_of_either,
    "MambaForCausalLM": mamba,
}
