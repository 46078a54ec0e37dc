"""Mamba and Mamba-2, alone, beside attention (Falcon-H1) and between it (Granite 4, Nemotron-H)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from synthe_core.interop.gguf.description import Description
from synthe_core.interop.gguf.export_families.llama import (
    ATTENTION,
    HEAD,
    MLP,
    biases,
    experts,
    head,
    multipliers,
    transformer,
)
from synthe_core.interop.gguf.families.mamba_hybrid import LAYER_NORM_EPS
from synthe_core.interop.gguf.outline import Keys, Outline, places

MAMBA2 = ("mamba2",)
LONGEST = 1 << 20
"""The context of a model whose state has no limit."""
CONV_BIAS = frozenset({"blk.0.ssm_conv1d.bias"})
"""llama.cpp loads no convolution without a bias."""


def mamba(outline: Outline) -> Description | None:
    layers = outline.layers(("mamba",))
    if layers is None or layers[0][0]["bias"]:
        return None
    (keys,) = layers[0]
    return Description(
        _alone(outline, len(layers))
        | {
            "ssm.conv_kernel": keys["conv"],
            "ssm.inner_size": keys["expand"] * outline.spec.width,
            "ssm.state_size": keys["state_size"],
            "ssm.time_step_rank": keys["dt_rank"],
        },
        head(outline) | CONV_BIAS,
    )


def mamba2(outline: Outline) -> Description | None:
    layers = outline.layers(MAMBA2)
    if layers is None or layers[0][0]["bias"]:
        return None
    return Description(_alone(outline, len(layers)) | ssm(layers[0][0]), head(outline) | CONV_BIAS)


def _alone(outline: Outline, layers: int) -> dict[str, Any]:
    return {
        "block_count": layers,
        "context_length": LONGEST,
        "embedding_length": outline.spec.width,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": float(outline.spec.norm_eps),
        "vocab_size": outline.vocab,
    }


def ssm(keys: Keys) -> dict[str, Any]:
    """The values of Mamba-2."""
    return {
        "ssm.conv_kernel": keys["conv"],
        "ssm.inner_size": keys["heads"] * keys["head_size"],
        "ssm.state_size": keys["state_size"],
        "ssm.time_step_rank": keys["heads"],
        "ssm.group_count": keys["groups"],
    }


def falcon_h1(outline: Outline) -> Description | None:
    """Its multipliers become part of the weights."""
    layers = outline.layers(MAMBA2, ATTENTION, MLP)
    if layers is None or layers[0][0]["bias"] or layers[0][1]["rope"] is None:
        return None
    mixer, attention, mlp = layers[0]
    present = CONV_BIAS | (HEAD if outline.spec.embedding_scale != outline.spec.logit_scale else head(outline))
    present |= biases(attention, mlp)
    if mixer["norm"] != "none":
        present |= {"blk.0.ssm_norm.weight"}
    folds: dict[str, Callable[[Tensor], Tensor]] = {
        "embedding.weight": _times(outline.spec.embedding_scale),
        "head.weight": _times(outline.spec.logit_scale),
    }
    learners: list[Keys] = []
    for keys, (block, place) in zip(outline.learners, places(outline), strict=True):
        factors, unscaled = FOLDS[keys["type"]](keys)
        learners.append(unscaled)
        folds |= {f"blocks.{block}.learners.{place}.{name}": _times(each) for name, each in factors.items()}
    metadata = transformer(outline, len(layers), attention, mlp["hidden"]) | ssm(mixer)
    one = outline.changed(learners, embedding_scale=1.0, logit_scale=1.0)
    return Description(metadata, present, folds=folds, outline=one)


def _times(factor: float | Tensor) -> Callable[[Tensor], Tensor]:
    """A column of factors is one for each row, and of a vector one for each number."""
    if isinstance(factor, Tensor):
        return lambda t: t * (factor if t.dim() > 1 else factor.flatten())
    return lambda t: t if factor == 1 else t * factor


def _unscaled(keys: Keys, **more: Any) -> Keys:
    return keys | {"residual": keys["residual"] | {"input_scale": 1.0, "scale": 1.0}} | more


def _folded_mixer(keys: Keys) -> tuple[dict[str, Any], Keys]:
    """W_in x of a scaled input, times its multipliers."""
    channels, shared = keys["heads"] * keys["head_size"], keys["groups"] * keys["state_size"]
    rows = torch.repeat_interleave(
        torch.tensor(keys["multipliers"]), torch.tensor([channels, channels, shared, shared, keys["heads"]])
    )
    into = rows[:, None] * keys["residual"]["input_scale"]
    plain = all(each == 1 for each in keys["multipliers"]) and keys["residual"]["input_scale"] == 1
    factors = {"in_proj.weight": 1.0 if plain else into, "out_proj.weight": keys["residual"]["scale"]}
    return factors, _unscaled(keys, multipliers=[1.0] * 5)


def _folded_attention(keys: Keys) -> tuple[dict[str, Any], Keys]:
    """A factor of scores is one of keys."""
    size, usual = keys["head_size"], keys["head_size"] ** -0.5
    queries, others = keys["heads"] * size, keys["kv_heads"] * size
    into, of_keys = keys["residual"]["input_scale"], keys["scale"] / usual
    rows = torch.tensor([1.0] * queries + [of_keys] * others + [1.0] * others)[:, None]
    biased = keys["bias"] != "none"
    factors = {"qkv.weight": into if abs(of_keys - 1) < 1e-7 else rows * into, "out.weight": keys["residual"]["scale"]}
    factors |= {"qkv.bias": rows, "out.bias": keys["residual"]["scale"]} if biased else {}
    return factors, _unscaled(keys, scale=usual)


def _folded_mlp(keys: Keys) -> tuple[dict[str, Any], Keys]:
    hidden, gate = keys["hidden"], keys["gate_scale"]
    rows: Any = 1.0 if gate == 1 else torch.tensor([gate] * hidden + [1.0] * hidden)[:, None]
    factors = {"gate_up.weight": rows, "out.weight": keys["residual"]["scale"]}
    factors |= {"gate_up.bias": rows, "out.bias": keys["residual"]["scale"]} if keys["bias"] else {}
    return factors, _unscaled(keys, gate_scale=1.0)


FOLDS: dict[str, Callable[[Keys], tuple[dict[str, Any], Keys]]] = {
    "mamba2": _folded_mixer,
    "attention": _folded_attention,
    "mlp": _folded_mlp,
}


def granitehybrid(outline: Outline) -> Description | None:
    layers = outline.layers(("mamba2", "attention"), ("mlp", "experts"))
    if layers is None:
        return None
    attention = next((each for each, _ in layers if each["type"] == "attention"), None)
    mixer, (mixing, feeding) = next((each for each, _ in layers if each["type"] == "mamba2"), None), layers[0]
    if attention is None or mixer is None or attention["window"] != "full" or mixer["bias"]:
        return None
    sparse = feeding["type"] == "experts"
    metadata = transformer(outline, len(layers), attention, feeding["hidden"])
    metadata |= multipliers(outline, mixing | {"scale": attention["scale"]}) | ssm(mixer)
    heads = attention["kv_heads"]
    metadata["attention.head_count_kv"] = [heads if each["type"] == "attention" else 0 for each, _ in layers]
    metadata["rope.scaling.finetuned"] = attention["rope"] is not None
    metadata.setdefault("rope.dimension_count", attention["head_size"])
    if sparse:
        metadata |= experts(feeding) | {"expert_shared_feed_forward_length": feeding["shared"] or 0}
    index = next(i for i, (each, _) in enumerate(layers) if each["type"] == "mamba2")
    present = {f"blk.{index}.ssm_conv1d.bias"} | ({"blk.0.attn_q.bias"} if attention["bias"] != "none" else set())
    return Description(metadata, head(outline) | present)


def nemotron_h(outline: Outline) -> Description | None:
    """One learner a layer."""
    layers: list[tuple[Keys, ...]] = [(each,) for each in outline.learners]
    return None if "experts" in outline.kinds() else _nemotron(outline, layers)


def nemotron_h_moe(outline: Outline) -> Description | None:
    """Experts with an MLP beside them are one layer."""
    layers: list[tuple[Keys, ...]] = []
    for keys in outline.learners:
        if keys["type"] == "mlp" and layers and layers[-1][0]["type"] == "experts" and len(layers[-1]) == 1:
            layers[-1] = (layers[-1][0], keys)
        else:
            layers.append((keys,))
    return _nemotron(outline, layers) if "experts" in outline.kinds() else None


def _nemotron(outline: Outline, layers: list[tuple[Keys, ...]]) -> Description | None:
    firsts = {each[0]["type"]: each for each in reversed(layers)}
    if not {"mamba2", "attention"} <= firsts.keys() <= {"mamba2", "attention", "mlp", "experts"}:
        return None
    mixer, attention = firsts["mamba2"][0], firsts["attention"][0]
    metadata = transformer(outline, len(layers), attention, 0) | ssm(mixer)
    metadata[LAYER_NORM_EPS] = metadata["attention.layer_norm_rms_epsilon"]
    hidden = [each[0]["hidden"] if each[0]["type"] in ("mlp", "experts") else 0 for each in layers]
    metadata["feed_forward_length"] = hidden
    heads = attention["kv_heads"]
    metadata["attention.head_count_kv"] = [heads if each[0]["type"] == "attention" else 0 for each in layers]
    present = set(head(outline))
    for i, each in enumerate(layers):
        if each[0]["type"] == "mamba2":
            present |= {f"blk.{i}.ssm_conv1d.bias"} | ({f"blk.{i}.ssm_in.bias"} if mixer["bias"] else set())
        elif each[-1]["type"] == "mlp" and each[-1]["bias"]:
            present.add(f"blk.{i}.ffn_up{'_shexp' if len(each) == 2 else ''}.bias")
    if (sparse := firsts.get("experts")) is not None:
        if len(sparse) < 2 or "mlp" in firsts:
            return None
        metadata |= _nemotron_experts(*sparse)
    return Description(metadata, frozenset(present))


def _nemotron_experts(keys: Keys, shared: Keys) -> dict[str, Any]:
    metadata = experts(keys) | {
        "expert_shared_count": 1,
        "expert_shared_feed_forward_length": shared["hidden"],
        "expert_weights_norm": keys["normalize"],
        "expert_weights_scale": float(keys["weight_scale"]),
        "expert_group_count": keys["groups"],
        "expert_group_used_count": keys["top_groups"],
    }
    return metadata | ({"moe_latent_size": keys["latent"]} if keys.get("latent") else {})
