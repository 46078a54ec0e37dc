"""Nemotron-H: one learner a layer, of Mamba-2, attention without positions, an MLP or experts."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    activation,
    attention_keys,
    attention_tensors,
    mlp_keys,
    mlp_tensors,
)
from synthe_core.interop.huggingface.families.experts import expert_tensors, number_of_experts
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.state_space import mixer_tensors
from synthe_core.interop.huggingface.published import Config, shown

PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
RENAMED = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_conv_bias": "use_conv_bias",
}
"""The names that older configs have, and those that the same values have now."""


def nemotron_h(config: Config) -> Plan:
    config = Config(config.path, config.values | {RENAMED.get(key, key): each for key, each in config.values.items()})
    for key, only in {"sliding_window": None, "attention_bias": False, "output_router_logits": False}.items():
        config.only(key, only)
    for key in ("attention_dropout", "hidden_dropout"):
        config.only(key, 0)
    config.only("mamba_hidden_act", "silu", "swish")
    config.only("mamba_proj_bias", False, config.flag("use_bias", False))  # use_bias is the one that is read
    eps = config.number("layer_norm_epsilon", 1e-5)
    mixer, attention = _mixer(config, eps), attention_keys(config, size=128, groups=8, rope=None)
    mlp = _mlp(config, "intermediate_size", 21504)
    layers = []
    for index, kind in enumerate(_kinds(config)):
        before, place = norm(f"backbone.layers.{index}.norm"), f"backbone.layers.{index}.mixer"
        if kind == "moe":
            layers.append(_experts(config, before, place))
        elif kind == "linear_attention":
            layers.append([Part(mixer, before, mixer_tensors(mixer, place))])
        elif kind == "full_attention":
            layers.append([Part(attention, before, attention_tensors(place, attention))])
        else:
            layers.append([Part(mlp, before, mlp_tensors(place, mlp))])
    return Plan(
        layers,
        config.size("hidden_size", 4096),
        config.size("vocab_size", 131072),
        "backbone.embeddings.weight",
        norm("backbone.norm_f"),
        eps,
        config.flag("tie_word_embeddings", False),
        ignored=r"^mtp\.",  # layers that predict further tokens, which transformers leaves out too
    )


def _kinds(config: Config) -> list[str]:
    """Each layer's kind by layers_block_type, or by the letters of hybrid_override_pattern in older configs."""
    key = "layers_block_type" if config.get("layers_block_type") else "layer_types"
    pattern = config.get("hybrid_override_pattern")
    if config.get(key) is None and isinstance(pattern, str):
        key, kinds = "hybrid_override_pattern", [PATTERN.get(letter, letter) for letter in pattern]
    else:
        kinds = [OLDER.get(str(kind), str(kind)) for kind in config.items(key)]
    for kind in kinds:
        if kind not in PATTERN.values():
            raise config.unsupported(key, kind, PATTERN.values() if key != "hybrid_override_pattern" else PATTERN)
    if not kinds:
        raise config.unsupported(key, shown(kinds), ["a kind for each layer"])
    return kinds


def _mixer(config: Config, eps: float) -> dict[str, Any]:
    """The time step has a least value and no greatest, whatever time_step_limit says: so it is in transformers."""
    return {
        "type": "mamba2",
        "heads": config.size("mamba_num_heads", 128),
        "head_size": config.size("mamba_head_dim", 64),
        "state_size": config.size("ssm_state_size", 128),
        "groups": config.size("n_groups", 8),
        "conv": config.size("conv_kernel", 4),
        "conv_bias": config.flag("use_conv_bias", True),
        "bias": config.flag("use_bias", False),
        "time_step_limit": [config.number("time_step_min", 1e-3), None],
        "norm_eps": eps,
    }


def _mlp(config: Config, size: str, default: int, **more: Any) -> dict[str, Any]:
    """An MLP whose hidden size is under the key `size`."""
    keys = mlp_keys(config, key="mlp_hidden_act", default="relu2", gated=False, bias=config.flag("mlp_bias", False))
    return keys | {"hidden": config.size(size, default), **more}


def _experts(config: Config, before: dict[str, Origin], place: str) -> list[Part]:
    """Experts, which may read and write a latent, and beside them an MLP for every token."""
    config.only("n_shared_experts", 1)
    count, latent = number_of_experts(config, "n_routed_experts", 8), config.get("moe_latent_size")
    if latent is not None:
        config.only("mlp_bias", False)  # the maps to and from the latent would have biases
    experts = {
        "type": "experts",
        "experts": count,
        "top_k": config.size("num_experts_per_tok", 2),
        "hidden": config.size("moe_intermediate_size", 7688),
        "latent": None if latent is None else config.size("moe_latent_size"),
        "activation": activation(config, "mlp_hidden_act", "relu2"),
        "gated": False,
        "scores": "sigmoid",
        "normalize": config.flag("norm_topk_prob", True),
        "weight_scale": config.number("routed_scaling_factor", 1.0),
        "groups": config.size("n_group", 1),
        "top_groups": config.size("topk_group", 1),
        "bias_rate": 0.0,  # as it was trained: nothing moves it
        "balance": 0.0,
    }
    tensors = expert_tensors(f"{place}.experts", count, ("up_proj",), "down_proj")
    tensors |= linear("router", f"{place}.gate")
    tensors |= {"pool.routing.bias": origin(f"{place}.gate.e_score_correction_bias")}
    if latent is not None:
        tensors |= linear("into_latent", f"{place}.fc1_latent_proj")
        tensors |= linear("from_latent", f"{place}.fc2_latent_proj")
    beside = {"norm": "shared", "parallel": True}
    shared = _mlp(config, "moe_shared_expert_intermediate_size", 7688, residual=beside)
    return [Part(experts, before, tensors), Part(shared, {}, mlp_tensors(f"{place}.shared_experts", shared))]


ARCHITECTURES: Architectures = {
    "NemotronHForCausalLM": nemotron_h,
}
