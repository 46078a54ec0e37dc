"""Qwen3-Next and Qwen3.5: gated delta nets, gated attention in some layers, an MLP or experts in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from synthe_core.interop.huggingface.context_limit import context_limit
from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    layer_places,
    mlp_keys,
    mlp_tensors,
    qkv_rows,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.mixture import is_sparse, qwen_experts, qwen_experts_tensors
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config
from synthe_core.ops.short_conv import MAX_TAPS

LINEAR, FULL = "linear_attention", "full_attention"
KEY_EPS = 1e-6  # of keys and queries, which no config says
UNUSED = r"^mtp\."  # further heads that predict several tokens at once
VISION = r"^(mtp|visual|model\.visual)\."
NOTICE = "a multimodal model: its language model is used, and images and videos are not"

Feeding = Callable[[Config, int, str], Part]
Projections = Callable[[str, dict[str, Any]], Origin]


def qwen3_next(config: Config) -> Plan:
    return _hybrid(config, _interleaved, lambda c, i, place: _sparse(c, place) if is_sparse(c, i) else _dense(c, place))


def qwen3_5(config: Config) -> Plan:
    return _hybrid(config, _side_by_side, lambda c, _, place: _dense(c, place))


def qwen3_5_moe(config: Config) -> Plan:
    return _hybrid(config, _side_by_side, lambda c, _, place: _sparse(c, place))


def qwen3_5_multimodal(config: Config) -> Plan:
    return _language_model(config, qwen3_5)


def qwen3_5_moe_multimodal(config: Config) -> Plan:
    return _language_model(config, qwen3_5_moe)


def _language_model(config: Config, family: Callable[[Config], Plan]) -> Plan:
    """That of a multimodal model: positions in a text are those of rotary embeddings along one axis, as its three axes
    agree there."""
    text = config.inner("text_config")
    tie = {"tie_word_embeddings": config.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False))}
    plan = family(Config(config.path, text.values | tie, "text_config."))
    plan.aliases = (("model.", "model.language_model."),)
    plan.ignored = VISION
    limits = (plan.context, context_limit(text))
    plan.context = min((limit for limit in limits if limit is not None), default=None)
    plan.notices.append(NOTICE)
    return plan


def _hybrid(config: Config, projections: Projections, feeding: Feeding) -> Plan:
    config.only("hidden_act", "silu", "swish")
    delta, attention = _delta_keys(config), _attention_keys(config)
    layers = []
    for (index, place), kind in zip(layer_places(config), layer_kinds(config), strict=True):
        if kind == LINEAR:
            mixing = (delta, _delta_tensors(f"{place}.linear_attn", delta, projections))
        else:
            mixing = (attention, _attention_tensors(f"{place}.self_attn", attention))
        before = norm(f"{place}.input_layernorm", zero_centered=True)
        layers.append([Part(mixing[0], before, mixing[1]), feeding(config, index, place)])
    return transformer_plan(config, layers, norm=norm("model.norm", zero_centered=True), ignored=UNUSED)


def layer_kinds(config: Config) -> list[Any]:
    """The mixer of each layer: as `layer_types` says, or full attention in every `full_attention_interval`th."""
    count, interval = config.size("num_hidden_layers"), config.size("full_attention_interval", 4)
    kinds = [LINEAR if (index + 1) % interval else FULL for index in range(count)]
    kinds = config.items("layer_types", kinds, count)
    for kind in kinds:
        if kind not in (LINEAR, FULL):
            raise config.unsupported("layer_types", kind, (LINEAR, FULL))
    return kinds


def _delta_keys(config: Config) -> dict[str, Any]:
    key, taps = config.size("linear_key_head_dim", 128), config.size("linear_conv_kernel_dim", 4)
    if not 2 <= taps <= MAX_TAPS:
        raise config.unsupported("linear_conv_kernel_dim", taps, [f"2 to {MAX_TAPS}"])
    return {
        "type": "delta",
        "heads": config.size("linear_num_key_heads", 16),
        "value_heads": config.size("linear_num_value_heads", 32),
        "key_size": key,
        "value_size": config.size("linear_value_head_dim", 128),
        "conv": taps,
        "query_scale": key**-0.5,
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "key_norm_eps": KEY_EPS,
    }


def _delta_tensors(place: str, keys: dict[str, Any], projections: Projections) -> dict[str, Origin]:
    return {
        "project.weight": projections(place, keys),
        "conv": origin(f"{place}.conv1d.weight", make=_taps, undo=lambda ours: [ours[:, None]]),
        "A_log": origin(f"{place}.A_log"),
        "dt_bias": origin(f"{place}.dt_bias"),
        "norm": origin(f"{place}.norm.weight"),
        **linear("out", f"{place}.out_proj"),
    }


def _taps(weight: Tensor) -> Tensor:
    return weight.squeeze(1)


def _side_by_side(place: str, keys: dict[str, Any]) -> Origin:
    """Queries, keys and values, gate, β and decay one below the other, as ours."""
    values, mixed = keys["value_heads"] * keys["value_size"], 2 * keys["heads"] * keys["key_size"]
    rows = (mixed + values, values, keys["value_heads"], keys["value_heads"])
    return origin(*(f"{place}.in_proj_{name}.weight" for name in ("qkv", "z", "b", "a")), rows=rows)


def _interleaved(place: str, keys: dict[str, Any]) -> Origin:
    """Two matrices, whose rows are those of one key head after another."""
    heads, group = keys["heads"], keys["value_heads"] // keys["heads"]
    sizes = [keys["key_size"]] * 2 + [group * keys["value_size"]] * 2

    def make(qkvz: Tensor, ba: Tensor) -> Tensor:
        parts = [*qkvz.unflatten(0, (heads, -1)).split(sizes, 1), *ba.unflatten(0, (heads, -1)).split(group, 1)]
        return torch.cat([part.flatten(0, 1) for part in parts])

    rows = (heads * sum(sizes), heads * 2 * group)
    return origin(f"{place}.in_proj_qkvz.weight", f"{place}.in_proj_ba.weight", make=make, rows=rows)


def _attention_keys(config: Config) -> dict[str, Any]:
    size = config.size("head_dim", 256)
    keys = {
        "qk_norm": "weighted",
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "bias": "all" if config.flag("attention_bias", False) else "none",
        "gate": True,
        **rotary(config, size, share=0.25),
    }
    return attention_keys(config, size=size, groups=config.size("num_key_value_heads", 2), **keys)


def _attention_tensors(inner: str, keys: dict[str, Any]) -> dict[str, Origin]:
    """Of attention whose queries come with their gates, head by head."""
    bias = keys["bias"] == "all"

    def make(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, gates = (part.flatten(0, 1) for part in q.unflatten(0, (keys["heads"], 2, -1)).unbind(1))
        return torch.cat([queries, k, v, gates])

    tensors = linear("qkv", *(f"{inner}.{name}_proj" for name in "qkv"), bias=bias)
    queries, *others = qkv_rows(keys)
    tensors = {name: each._replace(make=make, rows=(2 * queries, *others)) for name, each in tensors.items()}
    tensors |= linear("out", f"{inner}.o_proj", bias=bias)
    return tensors | {name: norm(f"{inner}.{name}", zero_centered=True)["weight"] for name in ("q_norm", "k_norm")}


def _dense(config: Config, place: str) -> Part:
    keys = mlp_keys(config)
    return Part(keys, _feeding_norm(place), mlp_tensors(f"{place}.mlp", keys))


def _sparse(config: Config, place: str) -> Part:
    keys = qwen_experts(config, normalize=True)
    return Part(keys, _feeding_norm(place), qwen_experts_tensors(f"{place}.mlp", keys))


def _feeding_norm(place: str) -> dict[str, Origin]:
    return norm(f"{place}.post_attention_layernorm", zero_centered=True)


ARCHITECTURES: Architectures = {
    "Qwen3_5ForCausalLM": qwen3_5,
    "Qwen3_5ForConditionalGeneration": qwen3_5_multimodal,
    "Qwen3_5MoeForCausalLM": qwen3_5_moe,
    "Qwen3_5MoeForConditionalGeneration": qwen3_5_moe_multimodal,
    "Qwen3NextForCausalLM": qwen3_next,
}
