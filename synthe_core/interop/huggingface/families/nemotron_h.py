"""Nemotron-H: one learner a layer, of Mamba-2, attention without positions, an MLP or experts."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    mlp_keys,
    mlp_tensors,
)
from synthe_core.interop.huggingface.families.plan import Part, Plan, norm
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
    eps = config.number("layer_norm_epsilon", 1e-5)
    specs = {
        "linear_attention": _mixer(config, eps),
        "full_attention": attention_keys(config, size=128, groups=8, rope=None),
        "mlp": mlp_keys(
            config, key="mlp_hidden_act", default="relu2", gated=False, bias=config.flag("mlp_bias", False)
        ),
    }
    layers = []
    for index, kind in enumerate(_kinds(config)):
        place = f"backbone.layers.{index}"
        spec, mixer = specs[kind], f"{place}.mixer"
        if kind == "linear_attention":
            tensors = mixer_tensors(spec, mixer)
        elif kind == "full_attention":
            tensors = attention_tensors(mixer, spec)
        else:
            tensors = mlp_tensors(mixer, spec)
        layers.append([Part(spec, norm(f"{place}.norm"), tensors)])
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
        if kind not in PATTERN.values() or kind == "moe":
            raise config.unsupported(key, kind, [each for each in PATTERN.values() if each != "moe"])
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
