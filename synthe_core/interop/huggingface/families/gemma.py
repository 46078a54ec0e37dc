"""Gemma 1 to 3: GeGLU, norms with weights 1 + w, from Gemma 2 on before and after each learner, windows and caps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    decoder_layers,
    mlp_keys,
    optional,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, norm
from synthe_core.interop.huggingface.families.rotary import layer_parameters, rotary
from synthe_core.interop.huggingface.published import Config

GELU = "gelu_pytorch_tanh"
BOTH = {"norm": "both"}
BEFORE = ("input_layernorm", "pre_feedforward_layernorm")


def gemma(config: Config) -> Plan:
    activation = {"activation": "gelu_tanh"} if config.get("hidden_act") == "gelu" else {}  # as transformers reads it
    bias = _bias(config)
    keys = attention_keys(config, size=256, groups=16, bias=bias, **rotary(config))
    mlp = mlp_keys(config, default=GELU, **activation)
    return _plan(config, decoder_layers(config, keys, mlp, norm=_norm))


def gemma2(config: Config) -> Plan:
    cap = optional(config, "final_logit_softcapping", 30.0)
    return _plan(config, _sandwiched(config, _gemma2_attention(config)), logit_cap=cap)


def vault_gemma(config: Config) -> Plan:
    """Gemma 2 without norms after its learners."""
    attention = [keys | {"residual": None} for keys in _gemma2_attention(config)]
    mlp = mlp_keys(config, key="hidden_activation", default=GELU)
    layers = decoder_layers(config, attention, mlp, norm=_norm, before=BEFORE)
    return _plan(config, layers, logit_cap=optional(config, "final_logit_softcapping", 30.0))


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
    plan = _plan(config, _sandwiched(config, specs), logit_cap=optional(config, "final_logit_softcapping", None))
    plan.context = config.size("max_position_embeddings", 131_072)
    return plan


def gemma3_multimodal(config: Config) -> Plan:
    """Its language model; what it sees in images is left out."""
    text = config.inner("text_config")
    text.only("final_logit_softcapping", None)  # transformers does not apply it here
    tie = {"tie_word_embeddings": config.flag("tie_word_embeddings", True)}
    plan = gemma3(Config(config.path, text.values | tie, "text_config."))
    plan.aliases = (
        ("model.", "language_model.model."),
        ("model.", "model.language_model."),
        ("lm_head.", "language_model.lm_head."),
    )
    plan.ignored = r"^(model\.)?(vision_tower|multi_modal_projector)\."
    plan.notices.append("a multimodal model: its language model is used, and images are not")
    return plan


def _gemma2_attention(config: Config) -> list[dict[str, Any]]:
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


def _sandwiched(config: Config, attention: Sequence[dict[str, Any]]) -> list[list[Part]]:
    """Layers with norms before and after each learner."""
    mlp = mlp_keys(config, key="hidden_activation", default=GELU, residual=BOTH)
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    return decoder_layers(config, attention, mlp, norm=_norm, before=BEFORE, after=after, attend=_attention)


def _attention(inner: str, keys: Mapping[str, Any]) -> dict[str, Origin]:
    tensors = attention_tensors(inner, keys)
    norms = [name for name in tensors if name.endswith("_norm")]  # their weights are w of 1 + w too
    return tensors | {name: _norm(f"{inner}.{name}")["weight"] for name in norms}


def _norm(theirs: str) -> dict[str, Origin]:
    return norm(theirs, zero_centered=True)


def _plan(config: Config, layers: list[list[Part]], logit_cap: float | None = None) -> Plan:
    options = {"embedding_scale": config.size("hidden_size") ** 0.5}
    if logit_cap is not None:
        options["logit_cap"] = logit_cap
    tie = config.flag("tie_word_embeddings", True)
    return transformer_plan(config, layers, norm=_norm("model.norm"), tie=tie, options=options)


ARCHITECTURES: Architectures = {
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3ForConditionalGeneration": gemma3_multimodal,
    "GemmaForCausalLM": gemma,
    "VaultGemmaForCausalLM": vault_gemma,
}
