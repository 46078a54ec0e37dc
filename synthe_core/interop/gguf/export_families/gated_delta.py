"""LFM2's gated convolutions, and the gated delta nets of Qwen3-Next and Qwen3.5, between attention."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.gguf.description import Description
from synthe_core.interop.gguf.export_families.llama import MLP, experts, head, transformer
from synthe_core.interop.gguf.outline import Outline


def lfm2(outline: Outline) -> Description | None:
    layers = outline.layers(("gated_conv", "attention"), MLP)
    if layers is None or not outline.of("gated_conv") or any(each["bias"] for each in outline.of("gated_conv")):
        return None
    attention = next(iter(outline.of("attention")), None)
    if attention is None:
        return None
    metadata = transformer(outline, len(layers), attention, layers[0][1]["hidden"])
    heads = attention["kv_heads"]
    metadata["attention.head_count_kv"] = [heads if each["type"] == "attention" else 0 for each, _ in layers]
    metadata["shortconv.l_cache"] = outline.of("gated_conv")[0]["taps"]
    return Description(metadata, head(outline))


def qwen3next(outline: Outline) -> Description | None:
    made = _hybrid(outline, "experts")
    return None if made is None else Description(made, head(outline))


def qwen35(outline: Outline) -> Description | None:
    return _by_three_axes(_hybrid(outline, "mlp"), outline)


def qwen35moe(outline: Outline) -> Description | None:
    return _by_three_axes(_hybrid(outline, "experts"), outline)


def _by_three_axes(metadata: dict[str, Any] | None, outline: Outline) -> Description | None:
    """Shares of the rotary channels of time, row and column: of no effect, as a text rotates all by the same angle."""
    if metadata is None:
        return None
    pairs = metadata["rope.dimension_count"] // 2
    metadata["rope.dimension_sections"] = [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]
    return Description(metadata, head(outline))


def _hybrid(outline: Outline, feeding: str) -> dict[str, Any] | None:
    layers = outline.layers(("delta", "attention"), (feeding,))
    deltas, attention = outline.of("delta"), outline.of("attention")
    if layers is None or not deltas or not attention or attention[0]["bias"] != "none":
        return None
    delta, keys = deltas[0], layers[0][1]
    metadata = transformer(outline, len(layers), attention[0], keys["hidden"]) | {
        "ssm.conv_kernel": delta["conv"],
        "ssm.state_size": delta["key_size"],
        "ssm.group_count": delta["heads"],
        "ssm.time_step_rank": delta["value_heads"],
        "ssm.inner_size": delta["value_heads"] * delta["value_size"],
        "full_attention_interval": next(i for i, each in enumerate(layers, 1) if each[0]["type"] == "attention"),
    }
    if feeding == "experts":
        metadata |= experts(keys) | {"expert_shared_feed_forward_length": keys["shared"] or 0}
    return metadata
