"""GGUF files of transformers' models by llama.cpp's conventions, written with the gguf package and not with our code.

Facts from llama.cpp's converters: names, metadata, and what is done to each tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

gguf = pytest.importorskip("gguf")
Change = Callable[[Any, str, Tensor], Tensor | dict[str, Tensor]]


def write(path: Path, architecture: str, model: Any, changed: Change, **metadata: Any) -> Path:
    """Writes the parameters of `model` under the names that the gguf package knows, after `changed`, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    layers = config.num_hidden_layers
    names = gguf.get_tensor_name_map(kind, layers)
    for key, value in metadata.items():
        key = f"{architecture}.{key.replace('__', '.')}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    for name, tensor in published(model).items():
        made = changed(config, name, tensor)
        for each, value in made.items() if isinstance(made, dict) else ((name, made),):
            known = names.get_name(each, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(known or each, value.detach().contiguous().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def published(model: Any) -> dict[str, Tensor]:
    """Its tensors under the names of its saved files, without a head that is the embedding."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def common(config: Any, **more: Any) -> dict[str, Any]:
    """The metadata of most Transformers."""
    theta = getattr(config, "rope_parameters", None) or {}
    theta = theta.get("full_attention", theta)
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention__head_count": config.num_attention_heads,
        "attention__head_count_kv": config.num_key_value_heads,
        "attention__layer_norm_rms_epsilon": float(getattr(config, "rms_norm_eps", 1e-5)),
        "rope__freq_base": float(theta.get("rope_theta", 10_000.0)),
        **more,
    }


def heads(config: Any) -> dict[str, Any]:
    return {
        "attention__key_length": config.head_dim,
        "attention__value_length": config.head_dim,
        "rope__dimension_count": config.head_dim,
    }


def as_it_is(config: Any, name: str, tensor: Tensor) -> Tensor:
    return tensor


def pairs(config: Any, name: str, tensor: Tensor) -> Tensor:
    """Queries and keys whose rotated channels are neighbours."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = counts.get(name.split(".")[-2])
    if count is None:
        return tensor
    return (
        tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    )


def granite_moe(config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
    """Gates and hidden channels are apart."""
    if "input_linear" not in name:
        return pairs(config, name, tensor)
    gate, up = tensor.chunk(2, -2)
    kind, layer = "exps" if "sparse_moe" in name else "shexp", name.split(".")[2]
    return {f"blk.{layer}.ffn_gate_{kind}.weight": gate, f"blk.{layer}.ffn_up_{kind}.weight": up}


def norms_and_one(config: Any, name: str, tensor: Tensor) -> Tensor:
    return tensor + 1 if name.endswith("norm.weight") else tensor


def transposed(config: Any, name: str, tensor: Tensor) -> Tensor:
    return tensor.T if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else tensor


def separate_heads(config: Any, name: str, tensor: Tensor) -> Tensor:
    if "query_key_value" not in name:
        return tensor
    three = tensor.reshape(config.num_attention_heads, 3, -1, *tensor.shape[1:])
    return torch.cat([three[:, i].reshape(-1, *tensor.shape[1:]) for i in range(3)])


class Experts:
    """Stacks the matrices of a layer's experts."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def __call__(self, config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
        if ".experts." not in name:
            return tensor
        before, _, after = name.partition(".experts.")
        stacked = f"{before}.experts.{after.partition('.')[2]}"
        parts = self.parts.setdefault(stacked, [])
        assert len(parts) == int(after.partition(".")[0])  # they come in order
        parts.append(tensor)
        count = getattr(config, "num_experts", None) or config.n_routed_experts
        return {stacked: torch.stack(parts)} if len(parts) == count else {}


def falcon_h1(config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
    """Multipliers are part of the weights; A = -exp(A_log); the convolution has no middle dimension."""
    inner, groups = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
    into, out = config.attention_in_multiplier, config.attention_out_multiplier
    factors = {
        "down_proj": config.mlp_multipliers[1], "gate_proj": config.mlp_multipliers[0],
        "k_proj": config.key_multiplier * into, "q_proj": into, "v_proj": into, "o_proj": out,
        "out_proj": config.ssm_out_multiplier, "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }  # fmt: skip
    last = name.removesuffix(".weight").rpartition(".")[2]
    if last in factors:
        return tensor * factors[last]
    if last == "in_proj":
        sizes = (inner, inner, groups, groups, config.mamba_n_heads)
        parts = (torch.full((n,), m) for n, m in zip(sizes, config.ssm_multipliers, strict=True))
        return tensor * config.ssm_in_multiplier * torch.cat(list(parts))[:, None]
    if last == "dt_bias":
        return {name.replace("dt_bias", "dt_proj.bias"): tensor}
    if last == "A_log":
        return -tensor.exp()[:, None]
    if last == "D":
        return tensor[:, None]
    if "mamba.norm" in name:
        return tensor.reshape(config.mamba_n_groups, -1)
    return tensor.squeeze(1) if "conv1d.weight" in name else tensor


def short_convolutions(config: Any, name: str, tensor: Tensor) -> Tensor:
    return tensor.squeeze(1) if "conv.conv" in name else tensor
