"""The architectures of GGUF files: the config.json that their metadata stand for, and where its tensors are."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError, unknown
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.rope_divisors import scaling_of

Transform = Callable[[Tensor], Tensor]


class Metadata:
    """The values of an architecture, whose keys begin with its name. InputError names a missing or wrong one."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.path = file, file.path
        self.architecture = str(file.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, value, "a number")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, or a list that repeats one."""
        value = self.get(key, default)
        if hasattr(value, "tolist"):
            values = set(value.tolist())
            value = values.pop() if len(values) == 1 else value
        if type(value) is not int or value < 1:
            raise self.wrong(key, value, "a whole number above 0, the same in every layer")
        return value

    def optional(self, key: str) -> int:
        """A whole number; 0 for one that is missing."""
        value = self.get(key, 0)
        if type(value) is not int or value < 0:
            raise self.wrong(key, value, "a whole number")
        return value

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        problem = "is missing" if value is None else f"is {str(value)[:60]!r}"
        return InputError(
            f"{self.path}: {self.architecture}.{key} {problem}, and should be {expected}", "fetch the file again"
        )


class Architecture(NamedTuple):
    """config: transformers' config.json of a file. names: transformers' names, with `{i}` for a layer, and those of
    GGUF; both without `.weight` and `.bias`. transforms: what makes transformers' tensor of the stored one, by the
    last part of its name."""

    config: Callable[[Metadata], dict[str, Any]]
    names: Mapping[str, str]
    transforms: Callable[[dict[str, Any]], Mapping[str, Transform]]


def _plain(config: dict[str, Any]) -> Mapping[str, Transform]:
    return {}


def _interleaved(config: dict[str, Any]) -> Mapping[str, Transform]:
    """llama.cpp rotates pairs of neighbours in Llama's queries and keys, and transformers the two halves of a head."""

    def halves(heads: int) -> Transform:
        return lambda t: t.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    return {
        "q_proj": halves(config["num_attention_heads"]),
        "k_proj": halves(config["num_key_value_heads"]),
    }


def _state_space(config: dict[str, Any]) -> Mapping[str, Transform]:
    """A file has A = -exp(A_log), and no middle dimension of the convolution."""
    flat: Transform = (lambda t: t) if config["model_type"] == "mamba" else torch.flatten
    return {
        "A_log": lambda t: flat(t.float()).neg().log(),
        "D": flat,
        "conv1d": lambda t: t[:, None] if t.dim() == 2 else t,
        "norm": lambda t: t.flatten() if t.dim() == 2 else t,
    }


def _transformer(name: str, **more: Any) -> Callable[[Metadata], dict[str, Any]]:
    """The config of a Transformer: `name` without ForCausalLM, and `more` keys."""

    def config(data: Metadata) -> dict[str, Any]:
        heads, width = data.size("attention.head_count"), data.size("embedding_length")
        head = data.size("attention.key_length", width // heads)
        if data.size("attention.value_length", head) != head or data.size("rope.dimension_count", head) != head:
            raise data.wrong("rope.dimension_count", data.get("rope.dimension_count"), f"{head}, the size of a head")
        return {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": name.lower(),
            "hidden_size": width,
            "intermediate_size": data.size("feed_forward_length"),
            "num_hidden_layers": data.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": data.size("attention.head_count_kv", heads),
            "head_dim": head,
            "hidden_act": "silu",
            "max_position_embeddings": data.size("context_length"),
            "rms_norm_eps": _rounded(data.number("attention.layer_norm_rms_epsilon")),
            "rope_theta": data.number("rope.freq_base", 10_000.0),
            "rope_scaling": _rope_scaling(data, head),
            "sliding_window": data.optional("attention.sliding_window") or None,
            **more,
        }

    return config


def _rounded(value: float) -> float:
    """A float32 of the metadata as the short decimal that it was."""
    return float(f"{value:.6g}")


def _llama(data: Metadata) -> dict[str, Any]:
    """Llama, and Mistral, which is the same with a window."""
    if data.optional("expert_count"):
        raise InputError(f"{data.path} has experts, which are not supported in llama")
    name = "Mistral" if data.optional("attention.sliding_window") else "Llama"
    biased = "blk.0.attn_q.bias" in data.file
    return _transformer(name, attention_bias=biased, mlp_bias="blk.0.ffn_up.bias" in data.file)(data)


def _qwen2(data: Metadata) -> dict[str, Any]:
    return _transformer("Qwen2", use_sliding_window=False)(data) | {"sliding_window": None}


def _qwen3(data: Metadata) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in data.file
    return _transformer("Qwen3", use_sliding_window=False, attention_bias=biased)(data) | {"sliding_window": None}


def _rope_scaling(data: Metadata, head: int) -> dict[str, Any] | None:
    kind = data.get("rope.scaling.type", "none")
    if not isinstance(kind, str):
        raise data.wrong("rope.scaling.type", kind, "none or linear")
    if kind == "linear":
        return {"rope_type": "linear", "factor": data.number("rope.scaling.factor")}
    if kind != "none":
        raise data.wrong("rope.scaling.type", kind, "none or linear")
    return _llama3_scaling(data, head) if "rope_freqs.weight" in data.file else None


def _llama3_scaling(data: Metadata, head: int) -> dict[str, Any]:
    divisors = data.file["rope_freqs.weight"].double().flatten()
    base, contexts = data.number("rope.freq_base", 10_000.0), (8192, data.size("context_length"))
    if (scaling := scaling_of(divisors, head, base, contexts)) is None:
        raise InputError(f"{data.path}: the divisors in rope_freqs.weight are not Llama 3's, and are not supported")
    return scaling


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
        "layer_norm_epsilon": _rounded(data.number("attention.layer_norm_rms_epsilon", 1e-5)),
    }


TRANSFORMER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
    "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
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
    "llama": Architecture(_llama, TRANSFORMER, _interleaved),
    "qwen2": Architecture(_qwen2, TRANSFORMER, _plain),
    "qwen3": Architecture(_qwen3, TRANSFORMER, _plain),
    "mamba": Architecture(_mamba, STATE_SPACE, _state_space),
    "mamba2": Architecture(_mamba2, MAMBA2, _state_space),
}
IGNORED = ("rope_freqs.weight",)
"""Tensors whose meaning is in the config."""


def architecture_of(data: Metadata) -> Architecture:
    """InputError for one that is not in the table."""
    if not data.architecture:
        raise InputError(f"{data.path} names no architecture", "it is no model: general.architecture is missing")
    if data.architecture not in ARCHITECTURES:
        raise unknown("GGUF architecture", data.architecture[:80], ARCHITECTURES)
    return ARCHITECTURES[data.architecture]


def stored_names(architecture: Architecture, layers: int, theirs: Collection[str]) -> dict[str, str]:
    """For each of transformers' names in `theirs` its name in a file."""
    names: dict[str, str] = {}
    for name, place in _places(architecture, layers):
        for suffix in (".weight", ".bias", ""):
            if name + suffix in theirs:
                names[name + suffix] = place + suffix
    return names


def tensor_names(architecture: Architecture, layers: int, file: Collection[str], path: Path) -> dict[str, str]:
    """transformers' names of the tensors in a file, with the names that they have there. InputError for one that no
    name is known of."""
    names: dict[str, str] = {}
    for name, place in _places(architecture, layers):
        for suffix in (".weight", ".bias", ""):
            if place + suffix in file:
                names[name + suffix] = place + suffix
    unused = set(file) - set(names.values()) - set(IGNORED)
    if unused:
        raise InputError(
            f"{path} has a tensor {min(unused)[:80]}, which its architecture has not",
            "it is another architecture, or one with additions that synthe does not know",
        )
    return names


def _places(architecture: Architecture, layers: int) -> Iterator[tuple[str, str]]:
    for name, place in architecture.names.items():
        for i in range(layers if "{i}" in name else 1):
            yield name.replace("{i}", str(i)), place.replace("{i}", str(i))
