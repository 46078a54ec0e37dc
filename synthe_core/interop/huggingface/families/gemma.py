"""Gemma 1 to 3: GeGLU, norms with weights 1 + w, from Gemma 2 on before and after each learner, windows and caps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    layer_places,
    mlp_keys,
    mlp_tensors,
    optional,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.plan import Origin, Part, Plan, norm
from synthe_core.interop.huggingface.families.rotary import layer_parameters, rotary
from synthe_core.interop.huggingface.published import Config

GELU = "gelu_pytorch_tanh"
BOTH = {"norm": "both"}


def gemma(config: Config) -> Plan:
    activation = {"activation": "gelu_tanh"} if config.get("hidden_act") == "gelu" else {}  # as transformers reads it
    bias = _bias(config)
    keys = attention_keys(config, size=256, groups=16, bias=bias, **rotary(config))
    mlp = mlp_keys(config, default=GELU, **activation)
    layers = []
    for _, place in layer_places(config):
        attention = Part(keys, _norm(f"{place}.input_layernorm"), attention_tensors(f"{place}.self_attn", keys))
        feeding = Part(mlp, _norm(f"{place}.post_attention_layernorm"), mlp_tensors(f"{place}.mlp", mlp))
        layers.append([attention, feeding])
    return _plan(config, layers)


def gemma2(config: Config) -> Plan:
    return _sandwiched(config, _gemma2_layers(config), logit_cap=optional(config, "final_logit_softcapping", 30.0))


def vault_gemma(config: Config) -> Plan:
    """Gemma 2 without norms after its learners."""
    plan = _sandwiched(config, _gemma2_layers(config), logit_cap=optional(config, "final_logit_softcapping", 30.0))
    for layer in plan.layers:
        for place, part in enumerate(layer):
            spec = {key: value for key, value in part.spec.items() if key != "residual"}
            layer[place] = part._replace(spec=spec, post_norm={})
    return plan


def gemma3(config: Config) -> Plan:
    config.only("attn_logit_softcapping", None)  # transformers reads it, and does not apply it
    pattern = config.size("sliding_window_pattern", 6)
    kinds = _kinds(config, pattern)
    windows = windows_of(config, kinds, sliding_window(config))
    bases = {
        "full_attention": layer_parameters(config, "full_attention", config.number("rope_theta", 1e6)),
        "sliding_attention": layer_parameters(config, "sliding_attention", config.number("rope_local_base_freq", 1e4)),
    }
    specs = []
    for window in windows:
        kind = "full_attention" if window == "full" else "sliding_attention"
        eps = config.number("rms_norm_eps", 1e-6)
        positions = rotary(config, given=bases[kind])
        specs.append({**_keys(config), "window": window, "qk_norm": "weighted", "norm_eps": eps, **positions})
    limit = config.size("max_position_embeddings", 131_072)
    return _sandwiched(config, specs, logit_cap=optional(config, "final_logit_softcapping", None), context=limit)


def gemma3_multimodal(config: Config) -> Plan:
    """Its language model; what it sees in images is left out."""
    text = config.inner("text_config")
    tie = {"tie_word_embeddings": config.flag("tie_word_embeddings", True)}
    plan = gemma3(Config(config.path, text.values | tie, "text_config."))
    plan.aliases = {"model.": "model.language_model."}
    plan.ignored = r"(^|\.)(vision_tower|multi_modal_projector)\."
    plan.notices.append("a multimodal model: its language model is used, and images are not")
    return plan


def _gemma2_layers(config: Config) -> list[dict[str, Any]]:
    windows = windows_of(config, _kinds(config, 2), sliding_window(config))
    cap = optional(config, "attn_logit_softcapping", 50.0)
    return [{**_keys(config), "window": window, "logit_cap": cap, **rotary(config)} for window in windows]


def _keys(config: Config) -> dict[str, Any]:
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    return attention_keys(config, size=256, groups=4, bias=_bias(config), scale=scale, residual=BOTH)


def _bias(config: Config) -> str:
    config.only("use_bidirectional_attention", None, False)
    return "all" if config.flag("attention_bias", False) else "none"


def _kinds(config: Config, pattern: int) -> list[str]:
    """Every layer of `pattern` has full attention, the last, where the config does not list them."""
    layers = range(1, config.size("num_hidden_layers") + 1)
    return ["sliding_attention" if index % pattern else "full_attention" for index in layers]


def _sandwiched(
    config: Config, specs: Sequence[dict[str, Any]], logit_cap: float | None, context: int | None = None
) -> Plan:
    """Layers whose attention has `specs`, with norms before and after each learner."""
    mlp = mlp_keys(config, key="hidden_activation", default=GELU, residual=BOTH)
    layers = []
    for (_, place), keys in zip(layer_places(config), specs, strict=True):
        tensors = attention_tensors(f"{place}.self_attn", keys)
        if keys["qk_norm"]:
            tensors |= {name: _norm(f"{place}.self_attn.{name}")["weight"] for name in ("q_norm", "k_norm")}
        before, after = _norm(f"{place}.input_layernorm"), _norm(f"{place}.post_attention_layernorm")
        attention = Part(keys, before, tensors, after)
        before, after = _norm(f"{place}.pre_feedforward_layernorm"), _norm(f"{place}.post_feedforward_layernorm")
        layers.append([attention, Part(mlp, before, mlp_tensors(f"{place}.mlp", mlp), after)])
    plan = _plan(config, layers, logit_cap=logit_cap)
    plan.context = context or plan.context
    return plan


def _norm(theirs: str) -> dict[str, Origin]:
    return norm(theirs, zero_centered=True)


def _plan(config: Config, layers: list[list[Part]], logit_cap: float | None = None) -> Plan:
    options = {"embedding_scale": config.size("hidden_size") ** 0.5}
    if logit_cap is not None:
        options["logit_cap"] = logit_cap
    tie = config.flag("tie_word_embeddings", True)
    return transformer_plan(config, layers, norm=_norm("model.norm"), tie=tie, options=options)
