"""What a GGUF file says of a model of ours: a function for each architecture."""

from __future__ import annotations

from collections.abc import Callable

from synthe_core.interop.gguf.description import Description
from synthe_core.interop.gguf.export_families import gated_delta, gpt, llama, state_space, windows
from synthe_core.interop.gguf.outline import Outline

DESCRIPTIONS: dict[str, Callable[[Outline], Description | None]] = {
    "llama": llama.llama,
    "qwen2": llama.qwen2,
    "qwen3": llama.qwen3,
    "qwen3moe": llama.qwen3moe,
    "granite": llama.granite,
    "granitemoe": llama.granitemoe,
    "olmo2": windows.olmo2,
    "phi3": windows.phi3,
    "gemma2": windows.gemma2,
    "gemma3": windows.gemma3,
    "gpt2": gpt.gpt2,
    "gptneox": gpt.gptneox,
    "mamba": state_space.mamba,
    "mamba2": state_space.mamba2,
    "falcon-h1": state_space.falcon_h1,
    "granitehybrid": state_space.granitehybrid,
    "nemotron_h": state_space.nemotron_h,
    "nemotron_h_moe": state_space.nemotron_h_moe,
    "lfm2": gated_delta.lfm2,
    "qwen3next": gated_delta.qwen3next,
    "qwen35": gated_delta.qwen35,
    "qwen35moe": gated_delta.qwen35moe,
}
"""By the name of the architecture, the first that fits is written; None for a model that it does not fit. Whether it
computes the model is decided by reading the description back."""
PREFERRED = {"Phi3ForCausalLM": "phi3", "Qwen3_5MoeForCausalLM": "qwen35moe", "GraniteForCausalLM": "granite"}
"""Of models that several architectures compute, the one that a published model is of."""
