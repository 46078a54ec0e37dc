"""Mamba and Mamba-2."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.interop.gguf.families.architecture import LOG_A, NO_MIDDLE, Architecture, Change, Transforms
from synthe_core.interop.gguf.metadata import Metadata


def _state_space(config: dict[str, Any]) -> Transforms:
    if config["model_type"] == "mamba2":
        return mamba2_transforms(config["n_groups"])
    return {"A_log": LOG_A, "conv1d": NO_MIDDLE}


def mamba2_transforms(groups: int) -> Transforms:
    """A file has A and D as columns, and a row of the norm for each group."""
    column = Change(torch.flatten, lambda t: t[:, None])
    norm = Change(torch.flatten, lambda t: t.view(groups, -1))
    return {
        "A_log": Change(lambda a: LOG_A.read(a.flatten()), lambda A_log: LOG_A.write(A_log[:, None])),
        "D": column,
        "conv1d": NO_MIDDLE,
        "mixer.norm": norm,
        "mamba.norm": norm,
    }


def _mamba(data: Metadata) -> dict[str, Any]:
    if (norms := data.get("ssm.dt_b_c_rms", False)) is not False:
        raise data.wrong("ssm.dt_b_c_rms", norms, "false: norms on dt, B and C are not supported")
    return _of_state_space(data, "Mamba") | {
        "time_step_rank": data.size("ssm.time_step_rank"),
        "intermediate_size": data.size("ssm.inner_size"),
    }


def _mamba2(data: Metadata) -> dict[str, Any]:
    heads = data.size("ssm.time_step_rank")
    return _of_state_space(data, "Mamba2") | {
        "num_heads": heads,
        "head_dim": data.size("ssm.inner_size") // heads,
        "n_groups": data.size("ssm.group_count"),
    }


def _of_state_space(data: Metadata, name: str) -> dict[str, Any]:
    width = data.size("embedding_length")
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        "hidden_size": width,
        "num_hidden_layers": data.size("block_count"),
        "state_size": data.size("ssm.state_size"),
        "conv_kernel": data.size("ssm.conv_kernel"),
        "expand": data.size("ssm.inner_size") // width,
        "use_bias": "blk.0.ssm_in.bias" in data.file,
        "use_conv_bias": "blk.0.ssm_conv1d.bias" in data.file,
        "layer_norm_epsilon": data.rounded("attention.layer_norm_rms_epsilon", 1e-5),
    }


STATE_SPACE = {
    "backbone.embeddings": "token_embd",
    "backbone.norm_f": "output_norm",
    "lm_head": "output",
    "backbone.layers.{i}.norm": "blk.{i}.attn_norm",
    "backbone.layers.{i}.mixer.in_proj": "blk.{i}.ssm_in",
    "backbone.layers.{i}.mixer.conv1d": "blk.{i}.ssm_conv1d",
    "backbone.layers.{i}.mixer.x_proj": "blk.{i}.ssm_x",
    "backbone.layers.{i}.mixer.dt_proj": "blk.{i}.ssm_dt",
    "backbone.layers.{i}.mixer.A_log": "blk.{i}.ssm_a",
    "backbone.layers.{i}.mixer.D": "blk.{i}.ssm_d",
    "backbone.layers.{i}.mixer.norm": "blk.{i}.ssm_norm",
    "backbone.layers.{i}.mixer.out_proj": "blk.{i}.ssm_out",
}
MAMBA2 = {name: place for name, place in STATE_SPACE.items() if not name.endswith((".x_proj", ".dt_proj"))}
MAMBA2["backbone.layers.{i}.mixer.dt_bias"] = "blk.{i}.ssm_dt.bias"
ARCHITECTURES = {
    "mamba": Architecture(_mamba, STATE_SPACE, _state_space),
    "mamba2": Architecture(_mamba2, MAMBA2, _state_space),
}
