"""The models of flash-linear-attention that have one linear memory and a SwiGLU MLP in every layer, under its names.

DeltaNet, Gated DeltaNet, Gated DeltaProduct, KDA, GLA, RetNet, HGRN2, MesaNet and the forgetting transformer; and
Mamba-2, which has no MLP. Queries and keys of the delta rules and of MesaNet have length 1, up to an epsilon of 1e-6 in
the square; queries of the delta rules are divided by √K.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.published import Config

KEY_EPS = 1e-6
Mixer = tuple[dict[str, Any], Callable[[str], dict[str, Origin]]]
"""The specification of a layer's mixer, and its tensors under a place's names."""
Mixers = Callable[[int], Mixer]
"""The mixer of each layer, by its index."""


def delta_net(config: Config) -> Plan:
    for name, only in {"use_beta": True, "use_output_norm": True, "qk_norm": "l2", "qk_activation": "silu"}.items():
        config.only(name, only)
    width, heads, eps = config.size("hidden_size", 2048), config.size("num_heads", 16), config.number("norm_eps", 1e-6)
    key, value = (_share(config, name, 1.0, width, heads) for name in ("expand_k", "expand_v"))
    gate = config.flag("use_gate", False)
    spec = _delta(config, heads, None, key, value, eps) | {"gate": gate, "decay": False}
    return _plan(config, (spec, lambda place: _delta_tensors(place, spec, [])))


def gated_delta_net(config: Config) -> Plan:
    gate = config.flag("use_gate", True)
    name = config.get("output_gate_activation", "swish")
    if name not in ("swish", "silu", "sigmoid"):
        raise config.unsupported("output_gate_activation", name, ("swish", "silu", "sigmoid"))
    heads, size, eps = config.size("num_heads", 6), config.size("head_dim", 256), config.number("norm_eps", 1e-6)
    value = _times(config, "expand_v", 2.0, size)
    spec = _delta(config, heads, config.size("num_v_heads", heads), size, value, eps)
    spec |= {"gate": gate, "gate_function": "sigmoid" if name == "sigmoid" else "silu"}
    return _plan(config, (spec, lambda place: _delta_tensors(place, spec, ["a"])))


def gated_delta_product(config: Config) -> Plan:
    heads, size, eps = config.size("num_heads", 6), config.size("head_dim", 256), config.number("norm_eps", 1e-6)
    config.only("num_v_heads", None, heads)
    steps = config.size("num_householder", 1)
    if steps > 4:
        raise config.unsupported("num_householder", steps, ["1 to 4"])
    decay = config.flag("use_forget_gate", False)
    spec = _delta(config, heads, None, size, _times(config, "expand_v", 2.0, size), eps)
    spec |= {"gate": config.flag("use_output_gate", True), "decay": decay, "householder": steps}
    return _plan(config, (spec, lambda place: _delta_tensors(place, spec, ["a"] if decay else [])))


def kda(config: Config) -> Plan:
    heads, size = config.size("num_heads", 16), config.size("head_dim", 128)
    floor = config.get("lower_bound")
    if floor is not None and (isinstance(floor, bool) or not isinstance(floor, int | float) or not floor < 0):
        raise config.unsupported("lower_bound", floor, ["a number below 0"])
    if config.flag("safe_gate", False) and floor is None:
        raise config.unsupported("safe_gate", True, ["true with a lower_bound"])
    value = _times(config, "expand_v", 1.0, size)
    conv = _taps(config)
    spec = {
        "type": "kda",
        "heads": heads,
        "value_heads": config.size("num_v_heads", heads),
        "key_size": size,
        "value_size": value,
        "rank": value,
        "conv": conv,
        "beta_range": [0.0, 2.0 if config.flag("allow_neg_eigval", False) else 1.0],
        "decay_floor": floor,
        "norm_eps": config.number("norm_eps", 1e-6) * size,  # of outputs that are not divided by √K
        "key_norm_eps": KEY_EPS,
    }

    def tensors(place: str) -> dict[str, Origin]:
        names = [*(f"{name}_proj" for name in "qkv"), "f_proj.0", "g_proj.0", "b_proj"]
        made = linear("project", *(f"{place}.{name}" for name in names)) | linear("decay", f"{place}.f_proj.1")
        made |= linear("gate", f"{place}.g_proj.1") | linear("out", f"{place}.o_proj")
        made |= {"gate_bias": origin(f"{place}.g_proj.1.bias"), "norm": origin(f"{place}.o_norm.weight")}
        if conv:
            made["conv1d.weight"] = origin(*_convs(place))
        return made | {name: origin(f"{place}.{name}") for name in ("A_log", "dt_bias")}

    return _plan(config, (spec, tensors))


def gla(config: Config) -> Plan:
    for name, only in {"feature_map": None, "elementwise_affine": True, "use_gk": True, "use_gv": False}.items():
        config.only(name, only)
    width, heads = config.size("hidden_size", 2048), config.size("num_heads", 4)
    floor = config.get("clamp_min")
    if floor is not None and (isinstance(floor, bool) or not isinstance(floor, int | float) or not floor < 0):
        raise config.unsupported("clamp_min", floor, ["a number below 0"])
    gate, conv = config.flag("use_output_gate", True), config.flag("use_short_conv", False)
    spec = {
        "type": "gla",
        "heads": heads,
        "kv_heads": config.size("num_kv_heads", heads),
        "key_size": _share(config, "expand_k", 0.5, width, heads),
        "value_size": _share(config, "expand_v", 1.0, width, heads),
        "rank": 16,
        "temperature": 16.0,
        "decay_floor": floor,
        "conv": config.size("conv_size", 4) if conv else 0,
        "gate": gate,
        "norm_eps": config.number("norm_eps", 1e-6),
    }
    normed = "g_norm_swish_gate" if gate and config.flag("fuse_norm", True) else "g_norm"

    def tensors(place: str) -> dict[str, Origin]:
        names = [f"{name}_proj" for name in ("qkvg" if gate else "qkv")]
        made = linear("project", *(f"{place}.{name}" for name in (*names, "gk_proj.0")))
        made |= linear("decay", f"{place}.gk_proj.1", bias=True) | linear("out", f"{place}.o_proj")
        if conv:
            made["conv1d.weight"] = origin(*_convs(place))
        return made | {"norm": origin(f"{place}.{normed}.weight")}

    return _plan(config, (spec, tensors))


def retnet(config: Config) -> Plan:
    for name, only in {"feature_map": None, "elementwise_affine": True}.items():
        config.only(name, only)
    width, heads = config.size("hidden_size", 2048), config.size("num_heads", 8)
    config.only("num_kv_heads", None, heads)
    gate = config.flag("use_output_gate", True)
    spec = {
        "type": "retention",
        "heads": heads,
        "key_size": _share(config, "expand_k", 1.0, width, heads),
        "value_size": _share(config, "expand_v", 2.0, width, heads),
        "gate": gate,
        "norm_eps": config.number("norm_eps", 1e-6),
    }
    normed = "g_norm_swish_gate" if gate and config.flag("fuse_norm", True) else "g_norm"

    def tensors(place: str) -> dict[str, Origin]:
        made = linear("project", *(f"{place}.{name}_proj" for name in ("qkvg" if gate else "qkv")))
        return made | linear("out", f"{place}.o_proj") | {"norm": origin(f"{place}.{normed}.weight")}

    return _plan(config, (spec, tensors), hidden_ratio=2)


def hgrn2(config: Config) -> Plan:
    """All layers but the first have a bound of their forget gates, from one cumulative softmax over the layers."""
    for name, only in {"use_short_conv": False, "elementwise_affine": True}.items():
        config.only(name, only)
    width = config.size("hidden_size", 2048)
    size = config.size("expand_ratio", 128) if config.get("expand_ratio", 128) is not None else None
    heads = width // size if size else config.size("num_heads", 1)
    size = size or width // heads
    if heads < 1 or width % heads or heads * size != width:
        raise config.unsupported("expand_ratio", config.get("expand_ratio"), [f"what divides hidden_size {width}"])
    bounded = config.flag("use_lower_bound", True)

    def mixer(index: int) -> Mixer:
        spec = {
            "type": "hgrn2",
            "heads": heads,
            "key_size": size,
            "value_size": width // heads,
            "lower_bound": 0.5 if bounded and index else 0.0,  # of the tensor that is read: any but 0
            "norm_eps": 1e-5,  # whatever the config says: fla's layer does not pass it on
        }

        def tensors(place: str) -> dict[str, Origin]:
            made = linear("project", *(f"{place}.{name}_proj" for name in "qfi")) | linear("out", f"{place}.o_proj")
            made["norm"] = origin(f"{place}.g_norm.weight")
            if spec["lower_bound"]:
                made["bound"] = origin("model.lower_bounds", make=partial(bound_logit, index))
            return made

        return spec, tensors

    return _layered(config, mixer)


def bound_logit(index: int, bounds: Tensor) -> Tensor:
    """The logit of a layer's bound β = Σ_{0 < i <= index} softmax(bounds)_i, for each channel; bounds [L, D]."""
    shares = bounds.float().softmax(0)
    below = shares[1 : index + 1].sum(0)
    return below.log() - (shares[:1].sum(0) + shares[index + 1 :].sum(0)).log()


def mesa_net(config: Config) -> Plan:
    heads, size = config.size("num_heads", 16), config.size("head_dim", 128)
    gate = config.flag("use_output_gate", False)
    steps = config.size("max_cg_step_training", 30)
    config.only("max_cg_step_decoding", 30, steps)
    spec = {
        "type": "mesa",
        "heads": heads,
        "key_size": size,
        "value_size": size,
        "conv": config.size("conv_size", 4),
        "steps": steps,
        "ridge_min": config.number("lambda_lower_bound", 0.25),
        "gate": gate,
        "norm_eps": config.number("norm_eps", 1e-6),
        "key_norm_eps": KEY_EPS,
    }

    def tensors(place: str) -> dict[str, Origin]:
        names = [*"qkvba", *("g" if gate else "")]
        made = linear("project", *(f"{place}.{name}_proj" for name in names)) | linear("out", f"{place}.o_proj")
        made |= {"conv1d.weight": origin(*_convs(place)[:2]), "norm": origin(f"{place}.o_norm.weight")}
        made |= {"beta_bias": origin(f"{place}.b_proj.bias"), "decay_bias": origin(f"{place}.a_proj.bias")}
        return made | {"ridge": origin(f"{place}.lambda_params")}

    return _plan(config, (spec, tensors))


def forgetting_transformer(config: Config) -> Plan:
    for name, only in {"qkv_bias": False, "qk_norm": False, "window_size": None}.items():
        config.only(name, only)
    heads, gate = config.size("num_heads", 32), config.flag("use_output_gate", False)
    spec = {
        "type": "forgetting_attention",
        "heads": heads,
        "kv_heads": config.size("num_kv_heads", heads) if config.get("num_kv_heads") is not None else heads,
        "qk_norm": False,
        "gate": gate,
    }

    def tensors(place: str) -> dict[str, Origin]:
        names = [*"qkv", *("g" if gate else ""), "f"]
        made = linear("project", *(f"{place}.{name}_proj" for name in names)) | linear("out", f"{place}.o_proj")
        return made | {"forget_bias": origin(f"{place}.f_proj.bias")}

    return _plan(config, (spec, tensors))


def mamba2(config: Config) -> Plan:
    config.only("hidden_act", "silu", "swish")
    config.only("D_has_hdim", False)
    width, size, eps = config.size("hidden_size", 2048), config.size("head_dim", 64), config.number("norm_eps", 1e-5)
    bias, conv_bias = config.flag("use_bias", False), config.flag("use_conv_bias", True)
    normed, before = config.flag("rmsnorm", True), config.flag("norm_before_gate", False)
    limits = config.items("dt_limit", [0.0, math.inf], 2)
    spec = {
        "type": "mamba2",
        "state_size": config.size("state_size", 128),
        "head_size": size,
        "expand": config.size("expand", 2),
        "groups": config.size("n_groups", 1),
        "conv": config.size("conv_kernel", 4),
        "conv_bias": conv_bias,
        "bias": bias,
        # JSON has no number for infinity.
        "time_step_limit": [None if limit == math.inf or isinstance(limit, dict) else limit for limit in limits],
        "norm": ("before_gate" if before else "after_gate") if normed else "none",
        "norm_eps": eps,
    }
    heads = config.size("expand", 2) * width // size
    if heads * size != config.size("expand", 2) * width or config.get("num_heads", heads) not in (0, heads):
        raise config.unsupported("num_heads", config.get("num_heads"), ["expand * hidden_size / head_dim"])
    names = ["dt_bias", "A_log", "D", "in_proj.weight", "conv1d.weight", "out_proj.weight"]
    names += ["norm.weight"] * normed + ["conv1d.bias"] * conv_bias + ["in_proj.bias", "out_proj.bias"] * bias
    layers = []
    for index in range(config.size("num_hidden_layers", 48)):
        place = f"backbone.layers.{index}"
        tensors = {name: origin(f"{place}.mixer.{name}") for name in names}
        layers.append([Part(spec, norm(f"{place}.norm"), tensors)])
    return Plan(
        layers,
        width,
        config.size("vocab_size", 32000),
        "backbone.embeddings.weight",
        norm("backbone.norm_f"),
        eps,
        config.flag("tie_word_embeddings", False),
    )


def _delta(config: Config, heads: int, value_heads: int | None, key: int, value: int, eps: float) -> dict[str, Any]:
    return {
        "type": "delta",
        "heads": heads,
        "value_heads": value_heads,
        "key_size": key,
        "value_size": value,
        "conv": _taps(config),
        "beta_range": [0.0, 2.0 if config.flag("allow_neg_eigval", False) else 1.0],
        "query_scale": key**-0.5,
        "norm_eps": eps,
        "key_norm_eps": KEY_EPS,
    }


def _delta_tensors(place: str, spec: dict[str, Any], decays: list[str]) -> dict[str, Origin]:
    """The tensors of `delta`: rows of q, k, v, the gate, β and the decay."""
    names = [*"qkv", *(["g"] if spec["gate"] else []), "b", *decays]
    made = linear("project", *(f"{place}.{name}_proj" for name in names)) | linear("out", f"{place}.o_proj")
    made["norm"] = origin(f"{place}.o_norm.weight")
    if spec["conv"]:
        made["conv"] = origin(*_convs(place), make=flat_taps)
    return made | {name: origin(f"{place}.{name}") for name in ("A_log", "dt_bias") if decays}


def _convs(place: str) -> list[str]:
    return [f"{place}.{name}_conv1d.weight" for name in "qkv"]


def flat_taps(*weights: Tensor) -> Tensor:
    """The taps [C, J] of depthwise convolutions [c, 1, J] one after another."""
    return torch.cat(weights)[:, 0]


def _taps(config: Config) -> int:
    """The taps of the convolution, 0 without one. A convolution of one tap scales channels, which `delta` has not."""
    return config.size("conv_size", 4, least=2) if config.flag("use_short_conv", True) else 0


def _times(config: Config, key: str, default: float, size: int) -> int:
    """A whole number: `size` times a factor of the config."""
    value = size * config.number(key, default)
    if value != int(value):
        raise config.unsupported(key, config.get(key), [f"what makes a whole number of {size} channels"])
    return int(value)


def _share(config: Config, key: str, default: float, width: int, heads: int) -> int:
    """The channels of a head, of so many times the width as the config says."""
    channels = _times(config, key, default, width)
    if channels % heads:
        raise config.unsupported(key, config.get(key, default), [f"what makes a multiple of {heads} heads"])
    return channels // heads


def _plan(config: Config, mixer: Mixer, hidden_ratio: float = 4) -> Plan:
    """The model with one mixer and an MLP in every layer."""
    return _layered(config, lambda index: mixer, hidden_ratio)


def _layered(config: Config, mixer_of: Mixers, hidden_ratio: float = 4) -> Plan:
    """The model with a layer's own mixer and an MLP in every layer."""
    config.only("hidden_act", "swish", "silu")
    config.only("attn", None)
    config.only("attnres_block_size", None)
    width = config.size("hidden_size", 2048)
    hidden = -(-int(width * config.number("hidden_ratio", hidden_ratio) * 2 / 3) // 256) * 256
    mlp = {"type": "mlp", "hidden": config.size("intermediate_size", hidden)}
    layers = []
    for index in range(config.size("num_hidden_layers", 24)):
        place = f"model.layers.{index}"
        spec, tensors = mixer_of(index)
        feeding = linear("gate_up", f"{place}.mlp.gate_proj", f"{place}.mlp.up_proj")
        feeding |= linear("out", f"{place}.mlp.down_proj")
        layers.append(
            [
                Part(spec, norm(f"{place}.attn_norm"), tensors(f"{place}.attn")),
                Part(mlp, norm(f"{place}.mlp_norm"), feeding),
            ]
        )
    return Plan(
        layers,
        width,
        config.size("vocab_size", 32000),
        "model.embeddings.weight",
        norm("model.norm"),
        config.number("norm_eps", 1e-6),
        config.flag("tie_word_embeddings", False),
    )


ARCHITECTURES: Architectures = {
    "DeltaNetForCausalLM": delta_net,
    "GatedDeltaNetForCausalLM": gated_delta_net,
    "GatedDeltaProductForCausalLM": gated_delta_product,
    "ForgettingTransformerForCausalLM": forgetting_transformer,
    "GLAForCausalLM": gla,
    "HGRN2ForCausalLM": hgrn2,
    "KDAForCausalLM": kda,
    "MesaNetForCausalLM": mesa_net,
    "RetNetForCausalLM": retnet,
}
