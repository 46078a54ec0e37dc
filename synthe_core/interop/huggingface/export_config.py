"""The published architecture of a recipe's model, and its config.json: the inverse of `families`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthe_core.errors import InputError
from synthe_core.model.block import PRE_NORM, residual_of
from synthe_core.model.language_model import LanguageModel

MIXERS = ("mamba", "mamba2")


def config_of(model: LanguageModel, context: int) -> dict[str, Any]:
    """The config.json of the architecture that computes the same as `model`. InputError if there is none.

    A model with normalised embeddings is written with the normalised matrix, and so with a separate head. Norms without
    weights become norms with ones, and missing biases zeros, which computes the same.

    context: the longest text that the model was trained for.
    """
    spec = model.spec
    if spec.depth is not None:
        raise _unsupported("routes tokens past blocks (model.depth)")
    _check_plain(model)
    layers = model.learners
    kinds = [learner.config.type for learner in layers]
    common = {
        "vocab_size": model.vocab,
        "hidden_size": spec.width,
        "tie_word_embeddings": spec.tie and not spec.embed_norm,
        "torch_dtype": "float32",
    }
    if len(set(kinds)) == 1 and kinds[0] in MIXERS:
        return common | _state_space(layers, kinds[0], spec.norm_eps)
    if kinds == ["attention", "mlp"] * (len(kinds) // 2):
        architecture = _transformer(layers[::2], layers[1::2], spec.norm_eps)
        return common | {"max_position_embeddings": context} | architecture
    raise _unsupported(f"is {', '.join(dict.fromkeys(kinds))}")


def _check_plain(model: LanguageModel) -> None:
    """InputError for a key of the model, or of the residual around a learner, that these architectures lack."""
    defaults = {
        "embedding_scale": 1.0,
        "positions": None,
        "norm": "rms",
        "head_bias": False,
        "logit_scale": 1.0,
        "logit_cap": None,
    }
    for key, value in defaults.items():
        if getattr(model.spec, key) != value:
            raise _unsupported(f"has model.{key}")
    for learner in model.learners:
        if residual_of(learner.config) != PRE_NORM:
            raise _unsupported(f"has {learner.config.type} with `residual`")


def _transformer(attention: Sequence[Any], mlps: Sequence[Any], eps: float) -> dict[str, Any]:
    """Alternating attention and MLP: the simplest of Llama, Mistral, Qwen2 and Qwen3 that supports their options."""
    first, mlp = attention[0], mlps[0]
    config = first.config
    _check_uniform(attention, mlps, eps)
    values = {
        "num_attention_heads": first.heads,
        "num_key_value_heads": first.groups,
        "head_dim": first.size,
        "intermediate_size": mlp.out.in_features,
        "num_hidden_layers": len(attention),
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "rope_theta": config.rope,
        "rope_scaling": _scaling(config.rope_scaling),
        "attention_dropout": 0.0,
    }
    windows = [each.config.window for each in attention]
    sizes = {window for window in windows if window != "full"}
    if len(sizes) > 1:
        raise _unsupported(f"has windows of several sizes, {', '.join(map(str, sorted(sizes)))}")
    if config.qk_norm:
        kind, biases = "qwen3", {"attention_bias": config.bias != "none"}
    elif config.bias == "all" or (config.bias == "none" and not sizes):
        kind, biases = "llama", {"attention_bias": config.bias == "all", "mlp_bias": mlp.config.bias}
    elif config.bias == "none" and len(set(windows)) == 1:
        kind, biases = "mistral", {}
    else:
        kind, biases = "qwen2", {}
    if mlp.config.bias and kind != "llama":
        raise _unsupported("has an MLP with biases, which only Llama's plain attention supports")
    if sizes and kind == "llama":
        raise _unsupported("has a window and a bias on the output of attention")
    values |= biases
    if kind == "mistral":
        values["sliding_window"] = sizes.pop()
    elif kind != "llama":
        values |= {"use_sliding_window": bool(sizes), "sliding_window": sizes.pop() if sizes else None}
        values["layer_types"] = ["full_attention" if w == "full" else "sliding_attention" for w in windows]
        values["max_window_layers"] = len(windows)
    return {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind} | values


def _check_uniform(attention: Sequence[Any], mlps: Sequence[Any], eps: float) -> None:
    """InputError if layers differ in more than their windows, or have options that no architecture has."""
    config = attention[0].config
    if any(each.config.model_copy(update={"window": config.window}) != config for each in attention):
        raise _unsupported("has attention of several kinds")
    if any(each.config != mlps[0].config for each in mlps):
        raise _unsupported("has MLPs of several kinds")
    mlp = mlps[0].config
    if not mlp.gated or mlp.activation != "silu" or mlp.gate_scale != 1:
        raise _unsupported("has an MLP that is no SwiGLU (activation, gated or gate_scale)")
    if config.when is not None:
        raise _unsupported("has attention that runs at some tokens only (when)")
    if config.rope is None:
        raise _unsupported("has attention without positions (rope: null)")
    if config.bias == "out":
        raise _unsupported("has attention with a bias of its output only")
    if config.qk_norm == "joint" or config.rope_size not in (None, attention[0].size):
        raise _unsupported(f"has attention with {'qk_norm: joint' if config.qk_norm == 'joint' else 'rope_size'}")
    for key in ("gate", "logit_cap", "scale", "clip"):
        if getattr(config, key):
            raise _unsupported(f"has attention with {key}")
    if config.rope_scaling is not None and config.rope_scaling.type == "longrope":
        raise _unsupported("has factors of rotary positions for texts of one length (longrope)")
    if config.qk_norm and config.norm_eps != eps:
        raise _unsupported(f"has two epsilons, {config.norm_eps:g} in attention and {eps:g} in the norms between")


def _scaling(scaling: Any) -> dict[str, Any] | None:
    """rope_scaling in the format of Llama's configs."""
    if scaling is None:
        return None
    if scaling.type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    if scaling.type == "yarn":
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.context,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
            "truncate": scaling.truncate,
            "attention_factor": scaling.amplitude,
        }
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.context,
    }


def _check_state_space(layer: Any) -> None:
    """InputError for an option of a mixer that neither Mamba nor Mamba-2 has as they were published."""
    config = layer.config
    if config.type == "mamba":
        if config.bc_dt_norm:
            raise _unsupported("has mamba with norms on B, C and Δ (bc_dt_norm)")
        return
    if layer.channels != config.expand * layer.width:
        raise _unsupported(f"has mamba2 of {layer.channels} channels, which is not expand x width")
    if config.norm != "after_gate":
        raise _unsupported(f"has mamba2 with norm: {config.norm}")
    if config.norm_groups not in (None, config.groups):
        raise _unsupported("has mamba2 with other groups in its norm (norm_groups)")
    if config.multipliers is not None:
        raise _unsupported("has mamba2 with `multipliers`")
    if not isinstance(config.bias, bool):
        raise _unsupported(f"has mamba2 with bias: {config.bias}")


def _state_space(layers: Sequence[Any], kind: str, eps: float) -> dict[str, Any]:
    first = layers[0]
    config = first.config
    if any(each.config != config for each in layers):
        raise _unsupported(f"has {kind} of several kinds")
    _check_state_space(first)
    values = {
        "state_size": config.state_size,
        "expand": config.expand,
        "conv_kernel": config.conv,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "num_hidden_layers": len(layers),
        "layer_norm_epsilon": eps,
        "hidden_act": "silu",
    }
    if kind == "mamba":
        values |= {"intermediate_size": first.channels, "time_step_rank": first.rank}
        return {"architectures": ["MambaForCausalLM"], "model_type": "mamba"} | values
    if config.norm_eps != eps:
        raise _unsupported(f"has two epsilons, {config.norm_eps:g} in mamba2 and {eps:g} in the norms between")
    values |= {"num_heads": first.heads, "head_dim": config.head_size, "n_groups": config.groups}
    low, high = config.time_step_limit
    if (low, high) != (0.0, None):
        values["time_step_limit"] = [low, float("inf") if high is None else high]
    return {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2"} | values


class NoArchitecture(InputError):
    """A model that no published architecture computes."""


def _unsupported(reason: str) -> NoArchitecture:
    return NoArchitecture(
        f"no published architecture computes this model: it {reason}",
        "those that have one are blocks of attention and mlp (Llama, Mistral, Qwen2, Qwen3), of mamba or of mamba2",
    )
