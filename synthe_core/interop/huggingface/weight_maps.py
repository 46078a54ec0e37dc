"""Each published architecture in our learners, and the mapping of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from synthe_core.errors import unknown
from synthe_core.interop.huggingface.published import Config, UnsupportedModel


class Part(NamedTuple):
    """One learner of a layer: its `spec`, the name of the norm before it, and for each of our parameters the published
    tensors that are concatenated along their rows."""

    spec: dict[str, Any]
    norm: str
    tensors: dict[str, tuple[str, ...]]


class Plan(NamedTuple):
    """A model: `layers` from the bottom up, the names of tensors outside them, and the epsilon of its norms."""

    layers: list[list[Part]]
    embedding: str
    norm: str
    eps: float
    head: str = "lm_head.weight"

    def model(self, width: int, tie: bool) -> dict[str, Any]:
        """The `model` of a recipe, with the shortest block whose repetition gives the layers."""
        period = self._period()
        return {
            "width": width,
            "blocks": len(self.layers) // period,
            "block": [part.spec for layer in self.layers[:period] for part in layer],
            "tie": tie,
            "embed_norm": False,
            "norm_eps": self.eps,
        }

    def sources(self, tie: bool) -> dict[str, tuple[str, ...]]:
        """Every tensor of our model, and the published tensors that it is made of."""
        sources: dict[str, tuple[str, ...]] = {"embedding.weight": (self.embedding,), "norm.weight": (self.norm,)}
        if not tie:
            sources["head.weight"] = (self.head,)
        period = self._period()
        for start in range(0, len(self.layers), period):
            block = f"blocks.{start // period}"
            parts = [part for layer in self.layers[start : start + period] for part in layer]
            for index, part in enumerate(parts):
                sources[f"{block}.norms.{index}.weight"] = (part.norm,)
                sources |= {f"{block}.learners.{index}.{name}": theirs for name, theirs in part.tensors.items()}
        return sources

    def _period(self) -> int:
        specs = [[part.spec for part in layer] for layer in self.layers]
        count = len(specs)
        lengths = (n for n in range(1, count + 1) if count % n == 0)
        return next(n for n in lengths if specs == specs[:n] * (count // n))


def plan(config: Config) -> Plan:
    """The plan of the model in config.json. UnsupportedModel for an architecture or option that is not expressed."""
    names = config.items("architectures", [])
    if not names:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{config.path} names no architecture", f"`architectures` should hold one of {known}")
    if (name := str(names[0])) not in ARCHITECTURES:
        error = unknown("architecture", name, ARCHITECTURES)
        raise UnsupportedModel(error.message, error.hint)
    config.only("quantization_config", None)
    return ARCHITECTURES[name](config)


def tied_by_default(config: Config) -> bool:
    """Whether embedding and head share a matrix by config.json, or by default."""
    return config.flag("tie_word_embeddings", config.get("model_type") == "mamba")


def llama(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    return _transformer(config, {"bias": bias}, mlp_bias=config.flag("mlp_bias", False))


def mistral(config: Config) -> Plan:
    return _transformer(config, {"window": _sliding(config) or "full"})


def qwen2(config: Config) -> Plan:
    return _transformer(config, {"bias": "qkv"}, windows=_windows(config))


def qwen3(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    attention = {"bias": bias, "qk_norm": "weighted", "norm_eps": config.number("rms_norm_eps", 1e-6)}
    return _transformer(config, attention, windows=_windows(config), head_size=128)


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
        **_rope(config),
        **attention,
    }
    mlp = {"type": "mlp", "hidden": config.size("intermediate_size"), "bias": mlp_bias}
    layers = []
    for index in range(config.size("num_hidden_layers")):
        place = f"model.layers.{index}"
        inner = f"{place}.self_attn"
        qkv = tuple(f"{inner}.{name}_proj" for name in "qkv")
        mixing = _linear("qkv", *qkv, bias=spec.get("bias", "none") != "none")
        mixing |= _linear("out", f"{inner}.o_proj", bias=spec.get("bias") == "all")
        if spec["qk_norm"] == "weighted":
            mixing |= {name: (f"{inner}.{name}.weight",) for name in ("q_norm", "k_norm")}
        feeding = _linear("gate_up", f"{place}.mlp.gate_proj", f"{place}.mlp.up_proj", bias=mlp_bias)
        feeding |= _linear("out", f"{place}.mlp.down_proj", bias=mlp_bias)
        window = {} if windows is None else {"window": windows[index]}
        layers.append(
            [
                Part(spec | window, f"{place}.input_layernorm.weight", mixing),
                Part(mlp, f"{place}.post_attention_layernorm.weight", feeding),
            ]
        )
    return Plan(layers, "model.embed_tokens.weight", "model.norm.weight", config.number("rms_norm_eps", 1e-6))


def _linear(ours: str, *theirs: str, bias: bool) -> dict[str, tuple[str, ...]]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in kinds}


def _windows(config: Config) -> list[int | str]:
    """Each layer's window as Qwen's configs say it: by layer_types, or from layer max_window_layers on."""
    layers = config.size("num_hidden_layers")
    window = _sliding(config) if config.flag("use_sliding_window", False) else None
    first = config.size("max_window_layers", 28, least=0) if window else layers
    kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]
    kinds = config.items("layer_types", kinds, layers)
    known: dict[str, int | str] = {"full_attention": "full"} | ({"sliding_attention": window} if window else {})
    for kind in map(str, kinds):
        if kind not in known:
            raise config.unsupported("layer_types", kind, known)
    return [known[kind] for kind in kinds]


def _sliding(config: Config) -> int | None:
    """The window, which null means to be none and an absent key 4096."""
    return None if config.values.get("sliding_window", 4096) is None else config.size("sliding_window", 4096)


def _rope(config: Config) -> dict[str, Any]:
    """The rotary base and its scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.inner(key)
    for place in (config, given):
        place.only("partial_rotary_factor", 1)
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
    return {"rope": given.number("rope_theta", config.number("rope_theta", 10_000.0)), "rope_scaling": scaling or None}


def mamba(config: Config) -> Plan:
    spec = {
        "type": "mamba",
        "state_size": config.size("state_size", 16),
        "dt_rank": None if config.get("time_step_rank") == "auto" else config.get("time_step_rank"),
    }
    names = ["x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"]
    return _state_space(config, spec, names)


def mamba2(config: Config) -> Plan:
    channels = config.size("expand", 2) * config.size("hidden_size")
    heads, size = config.size("num_heads", 128), config.size("head_dim", 64)
    if heads * size != channels:
        raise config.unsupported("num_heads", heads, [f"{channels / size:g}, which is expand * hidden_size / head_dim"])
    spec = {
        "type": "mamba2",
        "state_size": config.size("state_size", 128),
        "head_size": size,
        "groups": config.size("n_groups", 8),
        "time_step_limit": [_finite(limit) for limit in config.items("time_step_limit", [0.0, math.inf], 2)],
        "norm_eps": config.number("layer_norm_epsilon", 1e-5),
    }
    return _state_space(config, spec, ["dt_bias", "A_log", "D", "norm.weight"])


def _finite(limit: Any) -> Any:
    """A bound of time_step_limit, which JSON has no number for where there is none: None then."""
    return None if limit == math.inf or isinstance(limit, dict) else limit


def _state_space(config: Config, spec: dict[str, Any], names: list[str]) -> Plan:
    """One mixer a layer, whose parameters are ours by name: `names`, and those that both kinds have."""
    config.only("hidden_act", "silu", "swish")
    biases = {"bias": config.flag("use_bias", False), "conv_bias": config.flag("use_conv_bias", True)}
    spec = {**spec, "expand": config.size("expand", 2), "conv": config.size("conv_kernel", 4), **biases}
    names = [*names, "in_proj.weight", "conv1d.weight", "out_proj.weight"]
    names += ["in_proj.bias", "out_proj.bias"] if biases["bias"] else []
    names += ["conv1d.bias"] if biases["conv_bias"] else []
    layers = []
    for index in range(config.size("num_hidden_layers")):
        place = f"backbone.layers.{index}"
        tensors: dict[str, tuple[str, ...]] = {name: (f"{place}.mixer.{name}",) for name in names}
        layers.append([Part(spec, f"{place}.norm.weight", tensors)])
    eps = config.number("layer_norm_epsilon", 1e-5)
    return Plan(layers, "backbone.embeddings.weight", "backbone.norm_f.weight", eps)


ARCHITECTURES: dict[str, Callable[[Config], Plan]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "MambaForCausalLM": mamba,
    "Mamba2ForCausalLM": mamba2,
}
