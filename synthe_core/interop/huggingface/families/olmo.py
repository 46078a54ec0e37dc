"""OLMo 1 to 3, and EXAONE 4: norms without weights, and later norms of what learners add instead of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    decoder_layers,
    mlp_keys,
    optional,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.plan import Architectures, Plan
from synthe_core.interop.huggingface.families.rotary import layer_parameters, rotary
from synthe_core.interop.huggingface.published import Config

POST = {"norm": "post"}


def olmo(config: Config) -> Plan:
    keys = attention_keys(config, bias=_bias(config), clip=optional(config, "clip_qkv", None), **rotary(config))
    layers = decoder_layers(config, keys, mlp_keys(config), before=(None, None))
    return transformer_plan(config, layers, norm={}, eps=1e-5, options={"norm": "layer_no_affine"})


def olmo2(config: Config) -> Plan:
    keys = attention_keys(config, bias=_bias(config), **_joint_norm(config), **rotary(config))
    return _post_normed(config, [keys] * config.size("num_hidden_layers"))


def olmo3(config: Config) -> Plan:
    windows = windows_of(config, _kinds(config, 4), sliding_window(config))
    bases = {
        "full_attention": layer_parameters(config, "full_attention", config.number("rope_theta", 5e5)),
        "sliding_attention": layer_parameters(config, "sliding_attention", 5e5),
    }
    attention = []
    for window in windows:
        kind = "full_attention" if window == "full" else "sliding_attention"
        keys = attention_keys(config, bias=_bias(config), window=window, **_joint_norm(config))
        attention.append(keys | rotary(config, given=bases[kind]))
    return _post_normed(config, attention)


def exaone4(config: Config) -> Plan:
    """Where some layers have a window, only they have positions."""
    window, pattern = sliding_window(config), 0
    if window is not None and config.get("layer_types") is None:
        pattern = config.size("sliding_window_pattern", 4)
    attention = []
    for each in windows_of(config, _kinds(config, pattern), window):
        positions = rotary(config) if window is None or each != "full" else {"rope": None}
        norms: dict[str, Any] = {"qk_norm": "weighted", "norm_eps": config.number("rms_norm_eps", 1e-5)}
        attention.append(attention_keys(config, groups=32, window=each, **norms, **positions))
    return _post_normed(config, attention)


def _bias(config: Config) -> str:
    return "all" if config.flag("attention_bias", False) else "none"


def _joint_norm(config: Config) -> dict[str, Any]:
    return {"qk_norm": "joint", "norm_eps": config.number("rms_norm_eps", 1e-5)}


def _kinds(config: Config, pattern: int) -> list[str]:
    """Every layer of `pattern` has full attention, the last, where the config does not list them; 0: all have."""
    layers = range(1, config.size("num_hidden_layers") + 1)
    return ["sliding_attention" if pattern and index % pattern else "full_attention" for index in layers]


def _post_normed(config: Config, attention: Sequence[dict[str, Any]]) -> Plan:
    """Layers with a norm of what each learner adds."""
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    layers = decoder_layers(
        config,
        [keys | {"residual": POST} for keys in attention],
        mlp_keys(config, residual=POST),
        before=(None, None),
        after=after,
    )
    return transformer_plan(config, layers, eps=config.number("rms_norm_eps", 1e-5))


ARCHITECTURES: Architectures = {
    "Exaone4ForCausalLM": exaone4,
    "Olmo2ForCausalLM": olmo2,
    "Olmo3ForCausalLM": olmo3,
    "OlmoForCausalLM": olmo,
}
