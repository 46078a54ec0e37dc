"""Each published architecture in our learners, and the mapping of its tensors: one file a family."""

from __future__ import annotations

import re
from collections.abc import Callable

from synthe_core.errors import closest
from synthe_core.interop.huggingface.families import (
    deepseek,
    early,
    fla,
    gemma,
    gpt,
    jamba,
    kimi_linear,
    layer_norms,
    lfm2,
    llama_kin,
    mamba_hybrid,
    minimax,
    mixture,
    nemotron_h,
    olmo,
    olmo_hybrid,
    phi,
    qwen_hybrid,
    recurrent_gemma,
    rwkv7,
    state_space,
    transformer,
    xlstm,
)
from synthe_core.interop.huggingface.families.plan import Plan
from synthe_core.interop.huggingface.published import Config, UnsupportedModel


def _mamba2(config: Config) -> Plan:
    """Two libraries publish it under one name, with other keys."""
    return fla.mamba2(config) if "dt_limit" in config.values else state_space.mamba2(config)


ARCHITECTURES: dict[str, Callable[[Config], Plan]] = {
    "ArceeForCausalLM": llama_kin.arcee,
    "BambaForCausalLM": mamba_hybrid.bamba,
    "Cohere2ForCausalLM": layer_norms.cohere2,
    "CohereForCausalLM": layer_norms.cohere,
    "DeepseekV3ForCausalLM": deepseek.deepseek_v3,
    "DeltaNetForCausalLM": fla.delta_net,
    "Ernie4_5ForCausalLM": llama_kin.ernie4_5,
    "Exaone4ForCausalLM": olmo.exaone4,
    "FalconForCausalLM": early.falcon,
    "FalconH1ForCausalLM": mamba_hybrid.falcon_h1,
    "FalconMambaForCausalLM": state_space.falcon_mamba,
    "GatedDeltaNetForCausalLM": fla.gated_delta_net,
    "GatedDeltaProductForCausalLM": fla.gated_delta_product,
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "Gemma3ForConditionalGeneration": gemma.gemma3_multimodal,
    "GemmaForCausalLM": gemma.gemma,
    "GLAForCausalLM": fla.gla,
    "Glm4ForCausalLM": llama_kin.glm4,
    "Glm4MoeForCausalLM": deepseek.glm4_moe,
    "GlmForCausalLM": llama_kin.glm,
    "GPT2LMHeadModel": gpt.gpt2,
    "GPTBigCodeForCausalLM": early.gpt_bigcode,
    "GPTJForCausalLM": early.gptj,
    "GPTNeoXForCausalLM": gpt.gpt_neox,
    "GraniteForCausalLM": llama_kin.granite,
    "GraniteMoeForCausalLM": mixture.granite_moe,
    "GraniteMoeHybridForCausalLM": mamba_hybrid.granite_moe_hybrid,
    "HeliumForCausalLM": llama_kin.helium,
    "JambaForCausalLM": jamba.jamba,
    "KDAForCausalLM": fla.kda,
    "KimiLinearForCausalLM": kimi_linear.kimi_linear,
    "Lfm2ForCausalLM": lfm2.lfm2,
    "LlamaForCausalLM": transformer.llama,
    "Mamba2ForCausalLM": _mamba2,
    "MambaForCausalLM": state_space.mamba,
    "MiniMaxForCausalLM": minimax.minimax,
    "MinistralForCausalLM": llama_kin.ministral,
    "MistralForCausalLM": transformer.mistral,
    "MixtralForCausalLM": mixture.mixtral,
    "NemotronForCausalLM": layer_norms.nemotron,
    "NemotronHForCausalLM": nemotron_h.nemotron_h,
    "Olmo2ForCausalLM": olmo.olmo2,
    "Olmo3ForCausalLM": olmo.olmo3,
    "OlmoeForCausalLM": mixture.olmoe,
    "OlmoForCausalLM": olmo.olmo,
    "OlmoHybridForCausalLM": olmo_hybrid.olmo_hybrid,
    "OPTForCausalLM": early.opt,
    "Phi3ForCausalLM": phi.phi3,
    "PhiForCausalLM": phi.phi,
    "Qwen2ForCausalLM": transformer.qwen2,
    "Qwen2MoeForCausalLM": mixture.qwen2_moe,
    "Qwen3_5ForCausalLM": qwen_hybrid.qwen3_5,
    "Qwen3_5ForConditionalGeneration": qwen_hybrid.qwen3_5_multimodal,
    "Qwen3_5MoeForCausalLM": qwen_hybrid.qwen3_5_moe,
    "Qwen3_5MoeForConditionalGeneration": qwen_hybrid.qwen3_5_moe_multimodal,
    "Qwen3ForCausalLM": transformer.qwen3,
    "Qwen3MoeForCausalLM": mixture.qwen3_moe,
    "Qwen3NextForCausalLM": qwen_hybrid.qwen3_next,
    "RecurrentGemmaForCausalLM": recurrent_gemma.recurrent_gemma,
    "RWKV7ForCausalLM": rwkv7.rwkv7,
    "SeedOssForCausalLM": llama_kin.seed_oss,
    "SmolLM3ForCausalLM": llama_kin.smollm3,
    "StableLmForCausalLM": layer_norms.stablelm,
    "Starcoder2ForCausalLM": layer_norms.starcoder2,
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
        raise UnsupportedModel(
            f"unknown architecture '{name}'",
            f"{_nearest(name)}transformers may run it as it is: synthe generate FOLDER",
        )
    config.only("quantization_config", None)
    return ARCHITECTURES[name](config)


def _nearest(name: str) -> str:
    """The question after a similar architecture, or nothing. What all names end with makes none of them similar."""
    families: dict[str, str] = {}
    for known in ARCHITECTURES:
        families.setdefault(_family(known), known)
    family = _family(name)
    near = family if family in families else closest(family, families)
    return "" if near is None else f"did you mean '{families[near]}'? "


def _family(name: str) -> str:
    return re.split(r"For[A-Z]|LMHead", name)[0]
