"""OLMo 2 and 3, Phi-3, Gemma 2 and 3: Transformers with windows in some layers."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.interop.gguf.description import Description
from synthe_core.interop.gguf.export_families.llama import MLP, head, plain, scaling, transformer
from synthe_core.interop.gguf.families.llama import LONG, SHORT
from synthe_core.interop.gguf.outline import Keys, Outline


def olmo2(outline: Outline) -> Description | None:
    """Of OLMo 3 only layers that see all tokens have scaled angles."""
    if (layers := plain(outline, MLP)) is None or layers[0][0]["bias"] != "none":
        return None
    attention = [each for each, _ in layers]
    full = next((each for each in attention if each["window"] == "full"), attention[0])
    metadata = transformer(outline, len(layers), full, layers[0][1]["hidden"])
    return Description(metadata | _windows(attention), head(outline))


def _windows(attention: list[Keys]) -> dict[str, Any]:
    window = next((each["window"] for each in attention if each["window"] != "full"), None)
    if window is None:
        return {}
    return {
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": [each["window"] != "full" for each in attention],
    }


def phi3(outline: Outline) -> Description | None:
    """The factors of angles for long texts are those for short ones, as a model has one list."""
    if (layers := plain(outline, MLP)) is None or layers[0][0]["bias"] != "none":
        return None
    attention, mlp = layers[0]
    metadata = transformer(outline, len(layers), attention, mlp["hidden"])
    metadata = {key: value for key, value in metadata.items() if not key.endswith(("key_length", "value_length"))}
    metadata["rope.scaling.original_context_length"] = outline.context
    if attention["window"] != "full":
        metadata["attention.sliding_window"] = attention["window"]
    given = attention["rope_scaling"]
    if given is None or given["type"] != "longrope":
        return Description(metadata, head(outline))
    metadata["rope.scaling.attn_factor"] = float(given["attention_factor"])
    factors = torch.tensor(given["factors"])
    return Description(metadata, head(outline), {LONG: factors, SHORT: factors})


def gemma2(outline: Outline) -> Description | None:
    """llama.cpp always bounds scores and logits here, and has no head but the embedding."""
    if (layers := plain(outline, MLP)) is None or head(outline):
        return None
    caps = layers[0][0]["logit_cap"], outline.spec.logit_cap
    if None in caps:
        return None
    metadata = _gemma(outline, layers) | {"attn_logit_softcapping": caps[0], "final_logit_softcapping": caps[1]}
    return Description(metadata)


def gemma3(outline: Outline) -> Description | None:
    if (layers := plain(outline, MLP)) is None:
        return None
    metadata = _gemma(outline, layers)
    local = next((each["rope"] for each, _ in layers if each["window"] != "full"), None)
    if local is not None:
        metadata["rope.freq_base_swa"] = float(local)
    if outline.spec.logit_cap is not None:
        metadata["final_logit_softcapping"] = outline.spec.logit_cap
    return Description(metadata, head(outline))


def _gemma(outline: Outline, layers: list[tuple[Keys, Keys]]) -> dict[str, Any]:
    """Which layers have windows follows from the architecture."""
    attention = [each for each, _ in layers]
    full = next((each for each in attention if each["window"] == "full"), attention[0])
    metadata = transformer(outline, len(layers), full, layers[0][1]["hidden"]) | scaling(full["rope_scaling"])
    windows = _windows(attention)
    windows.pop("attention.sliding_window_pattern", None)
    return metadata | windows
