"""Mamba, Falcon Mamba and Mamba-2: one mixer a layer."""

from __future__ import annotations

import math
from typing import Any

from synthe_core.interop.huggingface.families.plan import Part, Plan, norm, origin
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
    return _state_space(config, spec, ["x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"])


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
        "time_step_limit": [_finite(limit) for limit in config.items("time_step_limit", [0.0, math.inf], 2)],
        "norm_eps": config.number("layer_norm_epsilon", 1e-5),
    }
    return _state_space(config, spec, ["dt_bias", "A_log", "D", "norm.weight"])


def _finite(limit: Any) -> Any:
    """A bound of time_step_limit, which JSON has no number for where there is none: None then."""
    return None if limit == math.inf or isinstance(limit, dict) else limit


def _state_space(config: Config, spec: dict[str, Any], names: list[str]) -> Plan:
    """One mixer a layer, whose parameters are ours by name: `names`, and those that both kinds have."""
    config.only("hidden_act", "silu", "swish")
    biases = {"bias": config.flag("use_bias", False), "conv_bias": config.flag("use_conv_bias", True)}
    spec = {**spec, "expand": config.size("expand", 2), "conv": config.size("conv_kernel", 4), **biases}
    names = [*names, "in_proj.weight", "conv1d.weight", "out_proj.weight"]
    names += ["in_proj.bias", "out_proj.bias"] if biases["bias"] else []
    names += ["conv1d.bias"] if biases["conv_bias"] else []
    layers = []
    for index in range(config.size("num_hidden_layers")):
        place = f"backbone.layers.{index}"
        tensors = {name: origin(f"{place}.mixer.{name}") for name in names}
        layers.append([Part(spec, norm(f"{place}.norm"), tensors)])
    return Plan(
        layers,
        config.size("hidden_size"),
        config.size("vocab_size"),
        "backbone.embeddings.weight",
        norm("backbone.norm_f"),
        config.number("layer_norm_epsilon", 1e-5),
        config.flag("tie_word_embeddings", spec["type"] == "mamba"),
    )
