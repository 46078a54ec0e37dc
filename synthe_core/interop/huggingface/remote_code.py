"""Models that need Python code of their own repository (`trust_remote_code`), which synthe never runs."""

from __future__ import annotations

from typing import Any

from synthe_core.errors import InputError


def check_runs_without_code(name: str, config: dict[str, Any]) -> None:
    """InputError for a model that only Python code of its own repository can run (`trust_remote_code`).

    A config with an `auto_map` names such code. It is not needed where our learners or transformers have the
    architecture.
    """
    mapping, architectures = config.get("auto_map"), config.get("architectures")
    if not isinstance(mapping, dict) or "AutoModelForCausalLM" not in mapping:
        return
    names = [each for each in architectures if isinstance(each, str)] if isinstance(architectures, list) else []
    if any(each in known_architectures() for each in names):
        return
    raise InputError(
        f"{name} runs with Python code of its repository only ({mapping['AutoModelForCausalLM']}), and synthe runs no "
        "code that it fetches",
        "a GGUF file of the model may run; `synthe merge` takes it, as tensors",
    )


def known_architectures() -> set[str]:
    """The architectures that run without code of the hub: as learners, or by transformers where it is installed."""
    from synthe_core.interop.huggingface.families import ARCHITECTURES

    known = set(ARCHITECTURES)
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        return known
    for each in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        known |= {each} if isinstance(each, str) else set(each)
    return known
