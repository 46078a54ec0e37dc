"""What llama.cpp's converters do to the tensors of models with attention and another memory. Facts from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.interop.gguf.conventions import Experts, pairs


def gated_deltas(config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
    """Those of Qwen3-Next: 1 + w of norms but for the delta nets' own, A = -exp(A_log), and apart what lies together
    in transformers."""
    if name.endswith(".A_log"):
        return -tensor.exp()
    if name.endswith(".dt_bias"):
        return {name.replace("dt_bias", "dt_proj.bias"): tensor}
    if "conv1d" in name:
        return tensor.squeeze()
    if name.endswith("norm.weight") and "linear_attn.norm" not in name:
        return tensor + 1
    if "in_proj_qkvz" in name:
        heads, layer = config.linear_num_key_heads, name.split(".")[2]
        key, value = config.linear_key_head_dim, config.linear_value_head_dim
        values = config.linear_num_value_heads // heads * value
        rows = tensor.reshape(heads, -1, tensor.shape[1])
        q, k, v, z = (part.reshape(-1, tensor.shape[1]) for part in rows.split([key, key, values, values], 1))
        return {f"blk.{layer}.attn_qkv.weight": torch.cat([q, k, v]), f"blk.{layer}.attn_gate.weight": z}
    return tensor


def tiled_values(config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
    """Those of Qwen3.5: value heads in the order of ggml's broadcasts, and the rest as Qwen3-Next's."""
    heads, size = config.linear_num_key_heads, config.linear_value_head_dim
    group, keys = config.linear_num_value_heads // heads, 2 * heads * config.linear_key_head_dim
    last = name.removesuffix(".weight").rpartition(".")[2]

    def order(size: int) -> Tensor:
        """For each place the one that comes there: head h of group g is at g + h × groups."""
        return torch.tensor(
            [(g * group + h) * size + c for h in range(group) for g in range(heads) for c in range(size)]
        )

    if "linear_attn" in name:
        if last in ("in_proj_qkv", "conv1d"):
            tensor = torch.cat([tensor[:keys], tensor[keys:][order(size)]])
        elif last in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
            tensor = tensor[order(1)]
        elif last == "in_proj_z":
            tensor = tensor[order(size)]
        elif last == "out_proj":
            tensor = tensor[:, order(size)]
    return gated_deltas(config, name, tensor)


class SparseGatedDeltas(Experts):
    """Experts in one tensor, and the rest as `inner` has it."""

    def __init__(self, inner: Any = gated_deltas) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
        return super().__call__(config, name, tensor) if ".experts." in name else self.inner(config, name, tensor)


def mamba2(name: str, tensor: Tensor, groups: int) -> Tensor | dict[str, Tensor]:
    """A = -exp(A_log) and D are columns, a norm has a row for each group, a convolution has no middle dimension."""
    if name.endswith("dt_bias"):
        return {name.replace("dt_bias", "dt_proj.bias"): tensor}
    if name.endswith("A_log"):
        return -tensor.exp()[:, None]
    if name.endswith(".D"):
        return tensor[:, None]
    if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        return tensor.reshape(groups, -1)
    return tensor.squeeze(1) if "conv1d.weight" in name else tensor


def granite(config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
    """Gates and hidden channels are apart; those that all tokens use are the MLP of a model without experts."""
    if "_mlp.input_linear" in name or "_moe.input_linear" in name:
        layer = name.split(".")[2]
        gate, up = tensor.chunk(2, -2)
        kind = "_exps" if "_moe." in name else "_shexp" if config.num_local_experts else ""
        return {f"blk.{layer}.ffn_gate{kind}.weight": gate, f"blk.{layer}.ffn_up{kind}.weight": up}
    if "shared_mlp.output_linear" in name and not config.num_local_experts:
        return {f"blk.{name.split('.')[2]}.ffn_down.weight": tensor}
    made = mamba2(name, tensor, config.mamba_n_groups)
    return made if isinstance(made, dict) else pairs(config, name, made)


class Nemotron(Experts):
    def __call__(self, config: Any, name: str, tensor: Tensor) -> Tensor | dict[str, Tensor]:
        if ".mixer.experts." in name:
            made = super().__call__(config, name, tensor)
            assert isinstance(made, dict)
            named = {"up_proj.weight": "ffn_up_exps.weight", "down_proj.weight": "ffn_down_exps.weight"}
            return {f"blk.{key.split('.')[2]}.{named[key.split('experts.')[1]]}": each for key, each in made.items()}
        if name.endswith("e_score_correction_bias"):
            return {name.replace("_bias", ".bias"): tensor}
        return mamba2(name, tensor, config.n_groups)
