"""Llama and its kin: attention and a SwiGLU MLP, each behind a norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthe_core.interop.huggingface.families.plan import Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.published import Config


def llama(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    return _transformer(config, {"bias": bias}, mlp_bias=config.flag("mlp_bias", False))


def mistral(config: Config) -> Plan:
    return _transformer(config, {"window": sliding_window(config) or "full"})


def qwen2(config: Config) -> Plan:
    return _transformer(config, {"bias": "qkv"}, windows=layer_windows(config))


def qwen3(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    attention = {"bias": bias, "qk_norm": "weighted", "norm_eps": config.number("rms_norm_eps", 1e-6)}
    return _transformer(config, attention, windows=layer_windows(config), head_size=128)


def _transformer(
    config: Config,
    attention: Mapping[str, Any],
    *,
    windows: list[int | str] | None = None,
    mlp_bias: bool = False,
    head_size: int | None = None,
) -> Plan:
    """Attention and a SwiGLU MLP, each behind a norm. `attention` has the options that differ from the default,
    `windows` the window of each layer if it is not among them, `head_size` the default of head_dim."""
    config.only("hidden_act", "silu", "swish")
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    spec = {
        "type": "attention",
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", heads),
        "head_size": config.size("head_dim", head_size or max(1, width // heads)),
        "qk_norm": False,
        **rotary(config),
        **attention,
    }
    mlp = {"type": "mlp", "hidden": config.size("intermediate_size"), "bias": mlp_bias}
    layers = []
    for index in range(config.size("num_hidden_layers")):
        place = f"model.layers.{index}"
        inner = f"{place}.self_attn"
        qkv = tuple(f"{inner}.{name}_proj" for name in "qkv")
        mixing = linear("qkv", *qkv, bias=spec.get("bias", "none") != "none")
        mixing |= linear("out", f"{inner}.o_proj", bias=spec.get("bias") == "all")
        if spec["qk_norm"] == "weighted":
            mixing |= {name: origin(f"{inner}.{name}.weight") for name in ("q_norm", "k_norm")}
        feeding = linear("gate_up", f"{place}.mlp.gate_proj", f"{place}.mlp.up_proj", bias=mlp_bias)
        feeding |= linear("out", f"{place}.mlp.down_proj", bias=mlp_bias)
        window = {} if windows is None else {"window": windows[index]}
        layers.append(
            [
                Part(spec | window, norm(f"{place}.input_layernorm"), mixing),
                Part(mlp, norm(f"{place}.post_attention_layernorm"), feeding),
            ]
        )
    return transformer_plan(config, layers)


def transformer_plan(config: Config, layers: list[list[Part]], **options: Any) -> Plan:
    """The plan of `layers` in a model whose other tensors are named as Llama's; `options` are further keys of Plan."""
    values: dict[str, Any] = {
        "layers": layers,
        "width": config.size("hidden_size"),
        "vocab": config.size("vocab_size"),
        "embedding": "model.embed_tokens.weight",
        "norm": norm("model.norm"),
        "eps": config.number("rms_norm_eps", 1e-6),
        "tie": config.flag("tie_word_embeddings", False),
    }
    return Plan(**values | options)


def layer_windows(config: Config) -> list[int | str]:
    """Each layer's window as Qwen's configs say it: by layer_types, or from layer max_window_layers on."""
    layers = config.size("num_hidden_layers")
    window = sliding_window(config) if config.flag("use_sliding_window", False) else None
    first = config.size("max_window_layers", 28, least=0) if window else layers
    kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]
    kinds = config.items("layer_types", kinds, layers)
    known: dict[str, int | str] = {"full_attention": "full"} | ({"sliding_attention": window} if window else {})
    for kind in map(str, kinds):
        if kind not in known:
            raise config.unsupported("layer_types", kind, known)
    return [known[kind] for kind in kinds]


def sliding_window(config: Config) -> int | None:
    """The window, which null means to be none and an absent key 4096."""
    return None if config.values.get("sliding_window", 4096) is None else config.size("sliding_window", 4096)


def rotary(config: Config, head_size: int | None = None, share: float = 1.0, base: float = 10_000.0) -> dict[str, Any]:
    """The rotary base and its scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`.

    head_size: of an architecture that turns a share of a head's channels, `partial_rotary_factor`; `share` where the
    config has none. base: where the config has none.
    """
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.inner(key)
    if head_size is None:
        for place in (config, given):
            place.only("partial_rotary_factor", 1)
        turned: dict[str, Any] = {}
    else:
        share = given.number("partial_rotary_factor", config.number("partial_rotary_factor", share))
        if not (size := int(head_size * share)) or size % 2 or size > head_size:
            raise given.unsupported("partial_rotary_factor", share, ["a share that turns an even number of channels"])
        turned = {"rope_size": None if size == head_size else size}
    kind = given.get("rope_type", given.get("type", "default"))
    scaling: dict[str, Any] = {"type": kind}
    if kind == "default":
        scaling = {}
    elif kind == "linear":
        scaling |= {"factor": given.number("factor")}
    elif kind == "llama3":
        stated = given.get("original_max_position_embeddings", config.get("max_position_embeddings"))
        scaling |= {
            "factor": given.number("factor"),
            "low": given.number("low_freq_factor"),
            "high": given.number("high_freq_factor"),
            "context": config.size("original_max_position_embeddings", stated),
        }
    else:
        raise given.unsupported("rope_type", kind, ("default", "linear", "llama3"))
    base = given.number("rope_theta", config.number("rope_theta", base))
    return {"rope": base, "rope_scaling": scaling or None, **turned}
