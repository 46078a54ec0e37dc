"""Each architecture of GGUF files: the config.json that its metadata stand for, and where its tensors are."""

from __future__ import annotations

from synthe_core.interop.gguf.families import (
    gemma,
    gpt,
    granite_moe,
    hybrid,
    llama,
    mamba_hybrid,
    qwen_hybrid,
    rwkv7,
    state_space,
)
from synthe_core.interop.gguf.families.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    **llama.ARCHITECTURES,
    **gemma.ARCHITECTURES,
    **gpt.ARCHITECTURES,
    **state_space.ARCHITECTURES,
    **hybrid.ARCHITECTURES,
    **granite_moe.ARCHITECTURES,
    **mamba_hybrid.ARCHITECTURES,
    **qwen_hybrid.ARCHITECTURES,
    **rwkv7.ARCHITECTURES,
}
