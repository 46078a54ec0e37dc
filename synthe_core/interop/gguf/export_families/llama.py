"""Llama and its kin: attention, and an MLP or experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from synthe_core.interop.gguf.description import Description
from synthe_core.interop.gguf.outline import Keys, Outline
from synthe_core.interop.gguf.rope_divisors import rope_divisors

ATTENTION, MLP, EXPERTS = ("attention",), ("mlp",), ("experts",)
HEAD = frozenset({"output.weight"})
BIASES = frozenset({"blk.0.attn_q.bias"})


def transformer(outline: Outline, layers: int, attention: Keys, hidden: int) -> dict[str, Any]:
    """The values of an architecture with attention. Converters write them in this order."""
    metadata = {
        "block_count": layers,
        "context_length": outline.context,
        "embedding_length": outline.spec.width,
        "feed_forward_length": hidden,
        "attention.head_count": attention["heads"],
        "attention.head_count_kv": attention["kv_heads"],
        "attention.key_length": attention["head_size"],
        "attention.value_length": attention["head_size"],
        "attention.layer_norm_rms_epsilon": float(outline.spec.norm_eps),
        "vocab_size": outline.vocab,
    }
    if attention["rope"] is not None:
        metadata |= {"rope.freq_base": float(attention["rope"]), "rope.dimension_count": attention["rope_size"]}
    return metadata | scaling(attention["rope_scaling"])


def scaling(given: Keys | None) -> dict[str, Any]:
    """The values for scaled rotary positions, of those kinds that need no tensor."""
    if given is None or given["type"] not in ("linear", "yarn"):
        return {}
    metadata = {"rope.scaling.type": given["type"], "rope.scaling.factor": float(given["factor"])}
    if given["type"] == "yarn":
        metadata |= {
            "rope.scaling.original_context_length": given["context"],
            "rope.scaling.yarn_beta_fast": float(given["fast"]),
            "rope.scaling.yarn_beta_slow": float(given["slow"]),
        }
    return metadata


def divisors(attention: Keys) -> dict[str, Tensor]:
    """The tensor that Llama 3's scaling is in a file."""
    given = attention["rope_scaling"]
    if given is None or given["type"] != "llama3":
        return {}
    names = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor"}
    values = {theirs: given[ours] for ours, theirs in names.items()}
    values["original_max_position_embeddings"] = given["context"]
    return {"rope_freqs.weight": rope_divisors(values, attention["head_size"], attention["rope"]).float()}


def head(outline: Outline) -> frozenset[str]:
    """The matrix of the head, where it is not the embedding as a file has it."""
    return frozenset() if outline.spec.tie and not outline.spec.embed_norm else HEAD


def plain(outline: Outline, feeding: Sequence[str]) -> list[tuple[Keys, Keys]] | None:
    """The layers of a model that is attention and `feeding` in turn."""
    layers = outline.layers(ATTENTION, feeding)
    if layers is None or layers[0][0]["rope"] is None:
        return None
    return [(attention, each) for attention, each in layers]


def experts(keys: Keys) -> dict[str, Any]:
    return {
        "expert_count": keys["experts"],
        "expert_used_count": keys["top_k"],
        "expert_feed_forward_length": keys["hidden"],
    }


def llama(outline: Outline) -> Description | None:
    """Llama with biases in all of attention or none, and Mistral."""
    if (layers := plain(outline, MLP)) is None:
        return None
    attention, mlp = layers[0]
    metadata = transformer(outline, len(layers), attention, mlp["hidden"])
    if attention["window"] != "full":
        metadata["attention.sliding_window"] = attention["window"]
    return Description(metadata, head(outline) | biases(attention, mlp), divisors(attention))


def biases(attention: Keys, mlp: Keys) -> frozenset[str]:
    mlp_biases = frozenset({"blk.0.ffn_up.bias"} if mlp.get("bias") else ())
    return mlp_biases | (BIASES if attention["bias"] == "all" else frozenset())


def qwen2(outline: Outline) -> Description | None:
    return _qwen(outline, MLP)


def qwen3(outline: Outline) -> Description | None:
    return _without_biases(_qwen(outline, MLP), outline)


def qwen3moe(outline: Outline) -> Description | None:
    return _without_biases(_qwen(outline, EXPERTS), outline)


def _qwen(outline: Outline, feeding: Sequence[str]) -> Description | None:
    if (layers := plain(outline, feeding)) is None:
        return None
    attention, keys = layers[0]
    metadata = transformer(outline, len(layers), attention, keys["hidden"])
    return Description(metadata | (experts(keys) if feeding == EXPERTS else {}), head(outline))


def _without_biases(description: Description | None, outline: Outline) -> Description | None:
    """llama.cpp loads none in these architectures."""
    return None if any(each["bias"] != "none" for each in outline.of("attention")) else description


def granite(outline: Outline) -> Description | None:
    if (layers := plain(outline, MLP)) is None:
        return None
    attention, mlp = layers[0]
    metadata = transformer(outline, len(layers), attention, mlp["hidden"]) | multipliers(outline, attention)
    return Description(metadata, head(outline) | biases(attention, mlp), divisors(attention))


def granitemoe(outline: Outline) -> Description | None:
    """Experts are as wide as the MLP of a dense model: they have no key of their own."""
    if (layers := plain(outline, EXPERTS)) is None:
        return None
    attention, keys = layers[0]
    metadata = transformer(outline, len(layers), attention, keys["hidden"]) | multipliers(outline, attention)
    metadata |= {"expert_count": keys["experts"], "expert_used_count": keys["top_k"]}
    if keys["shared"]:
        metadata["expert_shared_feed_forward_length"] = keys["shared"]
    return Description(metadata, head(outline) | biases(attention, {}), divisors(attention))


def multipliers(outline: Outline, attention: Mapping[str, Any]) -> dict[str, float]:
    return {
        "attention.scale": float(attention["scale"]),
        "embedding_scale": float(outline.spec.embedding_scale),
        "residual_scale": float(attention["residual"]["scale"]),
        "logit_scale": 1 / outline.spec.logit_scale,
    }
