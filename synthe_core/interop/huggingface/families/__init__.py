"""Each published architecture in our learners, and the mapping of its tensors: one file a family."""

from __future__ import annotations

from collections.abc import Callable

from synthe_core.errors import unknown
from synthe_core.interop.huggingface.families import (
    gemma,
    lfm2,
    mamba_hybrid,
    minimax,
    nemotron_h,
    recurrent_gemma,
    rwkv7,
    state_space,
    transformer,
    xlstm,
)
from synthe_core.interop.huggingface.families.plan import Plan
from synthe_core.interop.huggingface.published import Config, UnsupportedModel

ARCHITECTURES: dict[str, Callable[[Config], Plan]] = {
    "BambaForCausalLM": mamba_hybrid.bamba,
    "FalconH1ForCausalLM": mamba_hybrid.falcon_h1,
    "FalconMambaForCausalLM": state_space.falcon_mamba,
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "Gemma3ForConditionalGeneration": gemma.gemma3_multimodal,
    "GemmaForCausalLM": gemma.gemma,
    "GraniteMoeHybridForCausalLM": mamba_hybrid.granite_moe_hybrid,
    "Lfm2ForCausalLM": lfm2.lfm2,
    "LlamaForCausalLM": transformer.llama,
    "Mamba2ForCausalLM": state_space.mamba2,
    "MambaForCausalLM": state_space.mamba,
    "MiniMaxForCausalLM": minimax.minimax,
    "MistralForCausalLM": transformer.mistral,
    "NemotronHForCausalLM": nemotron_h.nemotron_h,
    "Qwen2ForCausalLM": transformer.qwen2,
    "Qwen3ForCausalLM": transformer.qwen3,
    "RecurrentGemmaForCausalLM": recurrent_gemma.recurrent_gemma,
    "RWKV7ForCausalLM": rwkv7.rwkv7,
    "VaultGemmaForCausalLM": gemma.vault_gemma,
    "xLSTMForCausalLM": xlstm.xlstm,
}


def plan(config: Config) -> Plan:
    """The plan of the model in config.json. UnsupportedModel for an architecture or option that is not expressed."""
    names = config.items("architectures", [])
    if not names:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{config.path} names no architecture", f"`architectures` should hold one of {known}")
    if (name := str(names[0])) not in ARCHITECTURES:
        error = unknown("architecture", name, ARCHITECTURES)
        raise UnsupportedModel(error.message, error.hint)
    config.only("quantization_config", None)
    return ARCHITECTURES[name](config)
