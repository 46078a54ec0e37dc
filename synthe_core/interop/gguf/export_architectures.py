"""The metadata of a GGUF file for a config.json of transformers, and the tensors as the file has them: the inverse of
`architectures`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

Transform = Callable[[Tensor], Tensor]


class ExportArchitecture(NamedTuple):
    """matches: whether the architecture computes a config. metadata: its values, without the architecture's name.
    transforms: what makes the stored tensor of transformers', by the last part of its name."""

    matches: Callable[[Mapping[str, Any]], bool]
    metadata: Callable[[Mapping[str, Any]], dict[str, Any]]
    transforms: Callable[[Mapping[str, Any]], Mapping[str, Transform]]


def _transformer(values: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        "block_count": values["num_hidden_layers"],
        "context_length": values["max_position_embeddings"],
        "embedding_length": values["hidden_size"],
        "feed_forward_length": values["intermediate_size"],
        "attention.head_count": values["num_attention_heads"],
        "attention.head_count_kv": values["num_key_value_heads"],
        "attention.key_length": values["head_dim"],
        "attention.value_length": values["head_dim"],
        "attention.layer_norm_rms_epsilon": float(values["rms_norm_eps"]),
        "rope.freq_base": float(values["rope_theta"]),
        "rope.dimension_count": values["head_dim"],
        "vocab_size": values["vocab_size"],
    }
    if values.get("sliding_window") and values["model_type"] == "mistral":
        metadata["attention.sliding_window"] = values["sliding_window"]
    scaling = values.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    return metadata


def _neighbours(values: Mapping[str, Any]) -> Mapping[str, Transform]:
    """Two halves of a head as pairs of neighbours, which Llama's files have."""

    def pairs(heads: int) -> Transform:
        return lambda t: t.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    return {"q_proj": pairs(values["num_attention_heads"]), "k_proj": pairs(values["num_key_value_heads"])}


def _none(values: Mapping[str, Any]) -> Mapping[str, Transform]:
    return {}


def _llama(values: Mapping[str, Any]) -> bool:
    """Llama without biases on its output, which only transformers has, and Mistral."""
    return (
        values["model_type"] in ("llama", "mistral") and not values.get("attention_bias") and not values.get("mlp_bias")
    )


def _qwen(kind: str) -> Callable[[Mapping[str, Any]], bool]:
    def matches(values: Mapping[str, Any]) -> bool:
        options = ("use_sliding_window", "attention_bias", "rope_scaling")
        return values["model_type"] == kind and not any(values.get(option) for option in options)

    return matches


def _mamba(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = values["expand"] * values["hidden_size"]
    metadata = {
        "block_count": values["num_hidden_layers"],
        "context_length": 2**20,
        "embedding_length": values["hidden_size"],
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": float(values["layer_norm_epsilon"]),
        "ssm.conv_kernel": values["conv_kernel"],
        "ssm.inner_size": inner,
        "ssm.state_size": values["state_size"],
        "vocab_size": values["vocab_size"],
    }
    if values["model_type"] == "mamba2":
        return metadata | {"ssm.time_step_rank": values["num_heads"], "ssm.group_count": values["n_groups"]}
    rank = values["time_step_rank"]
    return metadata | {"ssm.time_step_rank": math.ceil(values["hidden_size"] / 16) if rank == "auto" else rank}


def _state_space(values: Mapping[str, Any]) -> Mapping[str, Transform]:
    transforms: dict[str, Transform] = {
        "A_log": lambda t: -t.float().exp(),
        "conv1d": lambda t: t.flatten(1) if t.dim() == 3 else t,
    }
    if values["model_type"] == "mamba2":
        groups = values["n_groups"]
        transforms["A_log"] = lambda t: -t.float().exp()[:, None]
        transforms["D"] = lambda t: t[:, None]
        transforms["mixer.norm"] = lambda t: t.view(groups, -1)
    return transforms


def _of_kind(kind: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda values: values["model_type"] == kind and "time_step_limit" not in values


EXPORT_ARCHITECTURES = {
    "llama": ExportArchitecture(_llama, _transformer, _neighbours),
    "qwen2": ExportArchitecture(_qwen("qwen2"), _transformer, _none),
    "qwen3": ExportArchitecture(_qwen("qwen3"), _transformer, _none),
    "mamba": ExportArchitecture(_of_kind("mamba"), _mamba, _state_space),
    "mamba2": ExportArchitecture(_of_kind("mamba2"), _mamba, _state_space),
}
