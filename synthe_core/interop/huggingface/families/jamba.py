"""Jamba: Mamba with norms on B, C and Δ, in some layers attention without positions, and in some layers experts."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    layer_places,
    mlp_keys,
    mlp_tensors,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.experts import expert_tensors
from synthe_core.interop.huggingface.families.plan import Architectures, Part, Plan, norm, origin
from synthe_core.interop.huggingface.families.state_space import mixer_tensors
from synthe_core.interop.huggingface.published import Config


def jamba(config: Config) -> Plan:
    config.only("hidden_act", "silu", "swish")
    config.only("attention_dropout", 0)
    config.only("output_router_logits", False)
    mixer, attention = _mixer(config), attention_keys(config, groups=8, rope=None)
    layers = []
    for index, place in layer_places(config):
        before = norm(f"{place}.input_layernorm")
        if _has(config, index, "attn", (8, 4)):
            mixing = Part(attention, before, attention_tensors(f"{place}.self_attn", attention))
        else:
            mixing = Part(mixer, before, mixer_tensors(mixer, f"{place}.mamba"))
        layers.append([mixing, _feeding(config, index, place)])
    return transformer_plan(config, layers, norm=norm("model.final_layernorm"))


def _has(config: Config, index: int, kind: str, default: tuple[int, int]) -> bool:
    """Whether a layer is one of every so many, from an offset on."""
    offset = config.size(f"{kind}_layer_offset", default[1], least=0)
    return index % config.size(f"{kind}_layer_period", default[0]) == offset


def _mixer(config: Config) -> dict[str, Any]:
    rank = config.get("mamba_dt_rank", "auto")
    return {
        "type": "mamba",
        "state_size": config.size("mamba_d_state", 16),
        "expand": config.size("mamba_expand", 2),
        "conv": config.size("mamba_d_conv", 4),
        "dt_rank": None if rank == "auto" else config.size("mamba_dt_rank"),
        "bias": config.flag("mamba_proj_bias", False),
        "conv_bias": config.flag("mamba_conv_bias", True),
        "bc_dt_norm": "weighted",
        "norm_eps": config.number("rms_norm_eps", 1e-6),
    }


def _feeding(config: Config, index: int, place: str) -> Part:
    """The MLP of a layer, or its experts. Their weights are probabilities among all, whatever they sum to."""
    before, inner = norm(f"{place}.pre_ff_layernorm"), f"{place}.feed_forward"
    count = config.size("num_experts", 16)
    if count == 1 or not _has(config, index, "expert", (2, 1)):
        mlp = mlp_keys(config)
        return Part(mlp, before, mlp_tensors(inner, mlp))
    experts = {
        "type": "experts",
        "experts": count,
        "top_k": config.size("num_experts_per_tok", 2),
        "hidden": config.size("intermediate_size"),
        "normalize": False,
        "balance": 0.0,
    }
    tensors = expert_tensors(f"{inner}.experts", count, ("gate_proj", "up_proj"), "down_proj")
    return Part(experts, before, {"router.weight": origin(f"{inner}.router.weight"), **tensors})


ARCHITECTURES: Architectures = {
    "JambaForCausalLM": jamba,
}
