"""Bamba, Granite 4 and Falcon-H1: Mamba-2 and attention in one model, each layer with an MLP or experts after them."""

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
from synthe_core.interop.huggingface.families.experts import number_of_experts, stacked_below, stacked_beside
from synthe_core.interop.huggingface.families.plan import Architectures, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.families.state_space import mixer_tensors, time_step_limit
from synthe_core.interop.huggingface.published import Config

BESIDE = {"norm": "shared", "parallel": True}
"""The residual of a learner that reads what the learner before it reads."""
KINDS = {"linear_attention": "mamba", "mamba": "mamba", "full_attention": "attention", "attention": "attention"}
"""What each name of layer_types means, the older ones included."""


def bamba(config: Config) -> Plan:
    _check(config)
    config.only("z_loss_coefficient", 0)
    config.only("partial_rotary_factor", 0.5)  # the class has it, whatever a config says here
    with_attention = config.items("attn_layer_indices", [])
    mixer = mamba2_spec(config, mamba2_channels(config), norm_eps=config.number("rms_norm_eps", 1e-5))
    attention = _attention(config, groups=8)
    attention |= rotary(config, attention["head_size"], share=0.5)
    layers = []
    for index, place in layer_places(config):
        mixing = attention_part(attention, place) if index in with_attention else mixer_part(mixer, place)
        layers.append([mixing, _mlp(config, place)])
    return _plan(config, layers)


def granite_moe_hybrid(config: Config) -> Plan:
    _check(config)
    config.only("output_router_logits", False)
    eps = config.number("rms_norm_eps", 1e-6)
    scaled = {"residual": {"scale": config.number("residual_multiplier", 1.0)}}
    mixer = mamba2_spec(config, mamba2_channels(config), norm_eps=eps) | scaled
    attention = _attention(config, scale=config.number("attention_multiplier", 1.0)) | scaled
    attention |= rotary(config) if config.get("position_embedding_type") == "rope" else {"rope": None}
    layers = []
    kinds = layer_kinds(config, "layer_types", ["mamba"] * config.size("num_hidden_layers"))
    for index, place in layer_places(config):
        mixing = attention_part(attention, place) if kinds[index] == "attention" else mixer_part(mixer, place)
        layers.append([mixing, _granite_mlp(config, place, scaled)])
    return transformer_plan(
        config,
        layers,
        eps=eps,
        options={
            "embedding_scale": config.number("embedding_multiplier", 1.0),
            "logit_scale": 1 / config.number("logits_scaling", 1.0),
        },
    )


def _granite_mlp(config: Config, place: str, scaled: dict[str, Any]) -> Part:
    """Experts with one that every token uses, or that one alone."""
    before = norm(f"{place}.post_attention_layernorm")
    hidden = config.size("shared_intermediate_size", 1024)
    shared = linear("gate_up", f"{place}.shared_mlp.input_linear")
    shared |= linear("out", f"{place}.shared_mlp.output_linear")
    if config.size("num_local_experts", 8, least=0) == 0:
        return Part({"type": "mlp", "hidden": hidden} | scaled, before, shared)
    experts = {
        "type": "experts",
        "experts": number_of_experts(config, "num_local_experts", 8),
        "top_k": config.size("num_experts_per_tok", 2),
        "hidden": config.size("intermediate_size"),
        "normalize": True,
        "shared": hidden,
        "balance": 0.0,
        **scaled,
    }
    place = f"{place}.block_sparse_moe"
    tensors = {
        "router.weight": origin(f"{place}.router.layer.weight"),
        "pool.gate_up.weight": stacked_below(f"{place}.input_linear.weight", experts["experts"]),
        "pool.out.weight": stacked_beside(f"{place}.output_linear.weight", experts["experts"]),
    }
    return Part(experts, before, tensors | {f"pool.shared.{name}": each for name, each in shared.items()})


def falcon_h1(config: Config) -> Plan:
    """Mamba-2 and attention read the same normalised stream, and both are added to it."""
    _check(config)
    eps = config.number("rms_norm_eps", 1e-5)
    channels = config.size("mamba_d_ssm", 1024) if config.values.get("mamba_d_ssm", 1) is not None else None
    before_gate = config.flag("mamba_norm_before_gate", True)
    biases = config.flag("mamba_proj_bias", False), config.flag("projectors_bias", False)
    mixer = mamba2_spec(
        config,
        mamba2_channels(config) if channels is None else channels,
        bias=biases[0] if biases[0] == biases[1] else ("in" if biases[0] else "out"),
        norm=("before_gate" if before_gate else "after_gate") if config.flag("mamba_rms_norm", False) else "none",
        norm_eps=eps,
        multipliers=_numbers(config, "ssm_multipliers", 5),
        residual=_scales(config, "ssm_in_multiplier", "ssm_out_multiplier"),
    )
    attention = _attention(config, groups=8) | rotary(config)
    attention |= {  # keys times a number are scores times it
        "scale": config.number("key_multiplier", 1.0) * attention["head_size"] ** -0.5,
        "residual": BESIDE | _scales(config, "attention_in_multiplier", "attention_out_multiplier"),
    }
    gate, down = _numbers(config, "mlp_multipliers", 2)
    layers = []
    for _, place in layer_places(config):
        beside = attention_part(attention, place)._replace(norm={})
        mlp = _mlp(config, place, gate_scale=gate, residual={"scale": down})
        layers.append([mixer_part(mixer, place), beside, mlp])
    scales = {
        "embedding_scale": config.number("embedding_multiplier", 1.0),
        "logit_scale": config.number("lm_head_multiplier", 1.0),
    }
    return _plan(config, layers, options=scales)


def _scales(config: Config, before: str, after: str) -> dict[str, float]:
    """What a learner's input and output are multiplied by."""
    return {"input_scale": config.number(before, 1.0), "scale": config.number(after, 1.0)}


def _check(config: Config) -> None:
    """Refuses what none of these models has in our learners."""
    config.only("hidden_act", "silu", "swish")
    config.only("attention_dropout", 0)


def _plan(config: Config, layers: list[list[Part]], **options: Any) -> Plan:
    final = norm("model.final_layernorm")
    return transformer_plan(config, layers, norm=final, eps=config.number("rms_norm_eps", 1e-5), **options)


def layer_kinds(config: Config, key: str, default: list[str]) -> list[str]:
    """Each layer's kind, `mamba` or `attention`."""
    kinds = config.items(key, default, len(default))
    for kind in map(str, kinds):
        if kind not in KINDS:
            raise config.unsupported(key, kind, KINDS)
    return [KINDS[kind] for kind in kinds]


def mamba2_channels(config: Config) -> int:
    return config.size("mamba_expand", 2) * config.size("hidden_size")


def mamba2_spec(config: Config, channels: int, **options: Any) -> dict[str, Any]:
    """The keys of `mamba2` as these configs name them, with so many channels in all; `options` are further keys."""
    heads = config.size("mamba_n_heads", 128)
    size = channels // heads if config.get("mamba_d_head", "auto") == "auto" else config.size("mamba_d_head")
    if heads * size != channels:
        raise config.unsupported("mamba_d_head", size, [f"{channels / heads:g}, which is {channels} / mamba_n_heads"])
    return {
        "type": "mamba2",
        "heads": heads,
        "head_size": size,
        "state_size": config.size("mamba_d_state", 256),
        "groups": config.size("mamba_n_groups", 1),
        "conv": config.size("mamba_d_conv", 4),
        "conv_bias": config.flag("mamba_conv_bias", True),
        "bias": config.flag("mamba_proj_bias", False),
        "time_step_limit": time_step_limit(config),
        **options,
    }


def _attention(config: Config, **keys: Any) -> dict[str, Any]:
    return attention_keys(config, bias="all" if config.flag("attention_bias", False) else "none", **keys)


def mixer_part(spec: dict[str, Any], place: str) -> Part:
    return Part(spec, norm(f"{place}.input_layernorm"), mixer_tensors(spec, f"{place}.mamba"))


def attention_part(keys: dict[str, Any], place: str) -> Part:
    return Part(keys, norm(f"{place}.input_layernorm"), attention_tensors(f"{place}.self_attn", keys))


def _mlp(config: Config, place: str, **more: Any) -> Part:
    keys = mlp_keys(config, bias=config.flag("mlp_bias", False), **more)
    return Part(keys, norm(f"{place}.pre_ff_layernorm"), mlp_tensors(f"{place}.feed_forward", keys))


def _numbers(config: Config, key: str, count: int) -> list[float]:
    """A list of multipliers, ones by default."""
    values = config.items(key, [1.0] * count, count)
    return [Config(config.path, {key: value}).number(key) for value in values]


ARCHITECTURES: Architectures = {
    "BambaForCausalLM": bamba,
    "FalconH1ForCausalLM": falcon_h1,
    "GraniteMoeHybridForCausalLM": granite_moe_hybrid,
}
