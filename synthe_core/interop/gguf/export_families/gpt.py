"""GPT-2 and GPT-NeoX: LayerNorms with biases."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.gguf.description import Description
from synthe_core.interop.gguf.export_families.llama import ATTENTION, HEAD, MLP, head
from synthe_core.interop.gguf.outline import Keys, Outline


def gpt2(outline: Outline) -> Description | None:
    """Its positions are a table."""
    layers = outline.layers(ATTENTION, MLP)
    if layers is None or outline.spec.positions is None:
        return None
    attention, mlp = layers[0]
    metadata = _metadata(outline, len(layers), attention, mlp)
    return Description(metadata | {"context_length": outline.spec.positions}, head(outline))


def gptneox(outline: Outline) -> Description | None:
    """llama.cpp loads it with a head of its own, and with biases of attention."""
    layers = outline.layers(ATTENTION, MLP)
    if layers is None or layers[0][0]["rope_size"] is None:
        return None
    attention, mlp = layers[0]
    metadata = _metadata(outline, len(layers), attention, mlp) | {
        "rope.dimension_count": attention["rope_size"],
        "rope.freq_base": float(attention["rope"]),
        "use_parallel_residual": mlp["residual"]["parallel"],
    }
    return Description(metadata, HEAD | {"blk.0.attn_qkv.bias"})


def _metadata(outline: Outline, layers: int, attention: Keys, mlp: Keys) -> dict[str, Any]:
    return {
        "block_count": layers,
        "context_length": outline.context,
        "embedding_length": outline.spec.width,
        "feed_forward_length": mlp["hidden"],
        "attention.head_count": attention["heads"],
        "attention.layer_norm_epsilon": float(outline.spec.norm_eps),
    }
