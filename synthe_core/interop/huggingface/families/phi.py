"""Phi: attention and an MLP side by side, with biases. Phi-3: Llama's layers with fused maps, and LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    decoder_layers,
    mlp_keys,
    mlp_tensors,
    sliding_window,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Plan, linear, norm
from synthe_core.interop.huggingface.families.rotary import parameters, rotary, rotary_kind
from synthe_core.interop.huggingface.published import Config


def phi(config: Config) -> Plan:
    config.only("qk_layernorm", False)
    keys = attention_keys(config, bias="all")
    keys |= rotary(config, keys["head_size"], 0.5)
    mlp = mlp_keys(config, default="gelu_new", gated=False, bias=True, residual={"norm": "shared"})
    with_bias = partial(norm, bias=True)
    layers = decoder_layers(
        config,
        keys,
        mlp,
        norm=with_bias,
        before=("input_layernorm", None),
        attend=partial(attention_tensors, out="dense"),
        feed=partial(mlp_tensors, up="fc1", down="fc2"),
    )
    return transformer_plan(
        config,
        layers,
        norm=with_bias("model.final_layernorm"),
        eps=config.number("layer_norm_eps", 1e-5),
        options={"norm": "layer", "head_bias": True},
    )


def phi3(config: Config) -> Plan:
    given = parameters(config)
    if (kind := rotary_kind(given)) not in ("default", "longrope"):
        raise given.unsupported("rope_type", kind, ("default", "longrope"))
    keys = attention_keys(config, window=sliding_window(config, None) or "full")
    keys |= rotary(config, keys["head_size"])
    layers = decoder_layers(config, keys, mlp_keys(config), attend=_fused_attention, feed=fused_mlp)
    plan = transformer_plan(config, layers, eps=config.number("rms_norm_eps", 1e-5))
    if plan.context is not None:
        plan.notices.append(f"its factors of rotary positions for texts of up to {plan.context} tokens are used")
    return plan


def _fused_attention(inner: str, keys: Mapping[str, Any]) -> dict[str, Origin]:
    return linear("qkv", f"{inner}.qkv_proj") | linear("out", f"{inner}.o_proj")


def fused_mlp(inner: str, keys: Mapping[str, Any]) -> dict[str, Origin]:
    """An MLP whose gate and other map are one published map."""
    return linear("gate_up", f"{inner}.gate_up_proj") | linear("out", f"{inner}.down_proj")


ARCHITECTURES: Architectures = {
    "Phi3ForCausalLM": phi3,
    "PhiForCausalLM": phi,
}
