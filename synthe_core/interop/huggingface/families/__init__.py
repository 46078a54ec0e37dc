"""Each published architecture in our learners, and the mapping of its tensors: one file a family."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
from synthe_core.interop.huggingface.families.plan import Architectures, Plan
from synthe_core.interop.huggingface.published import Config, UnsupportedModel

FILES = (
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
"""Every file with a table of its own."""


def joined(tables: Iterable[Architectures]) -> Architectures:
    """One table of several, sorted by name. ValueError for a name in two of them."""
    whole: Architectures = {}
    for table in tables:
        if twice := sorted(whole.keys() & table.keys()):
            raise ValueError(f"two families name {twice[0]}")
        whole |= table
    return dict(sorted(whole.items(), key=lambda entry: entry[0].lower()))


ARCHITECTURES = joined(each.ARCHITECTURES for each in FILES)


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
