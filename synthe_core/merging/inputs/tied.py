"""Which tensors of a published model are one parameter: the embedding and the output head, if they are tied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from synthe_core.merging.hashed_file import TensorInfo

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|tok_embeddings|word_embeddings|embeddings|shared)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
SHARED = "shared.weight"  # of T5, whose encoder and decoder have it in any case
Equal = Callable[[str, str], bool]


def find_copies(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], equal: Equal) -> dict[str, str]:
    """Stored names of a tied matrix, and the name under which it is the embedding.

    As in transformers: a config with tie_word_embeddings false ties nothing, and two stored matrices that differ are
    two parameters, whatever the config says.
    """
    embeddings = [name for name, info in tensors.items() if EMBEDDING.search(name) and len(info.shape) == 2]
    embeddings.sort(key=lambda name: name != SHARED)
    others = embeddings[1:] if SHARED in embeddings else []
    if says_tied(config) is not False:
        others += [name for name in tensors if HEAD.search(name)]
    copies = {}
    for name in others:
        sources = (each for each in embeddings if each != name and each not in copies)
        source = next((each for each in sources if tensors[each] == tensors[name] and equal(name, each)), None)
        if source is not None:
            copies[name] = source
    return copies


def says_tied(config: Mapping[str, Any]) -> bool | None:
    """tie_word_embeddings of the config, or of its text model; None if it says nothing."""
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        if isinstance(values.get("tie_word_embeddings"), bool):
            return bool(values["tie_word_embeddings"])
    return None


def find_ties(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], copies: Mapping[str, str]
) -> dict[str, str]:
    """`copies`, and the head of a config that says that it is the embedding and of files that do not store it."""
    heads = [name for name in tensors if HEAD.search(name)]
    sources = [name for name in tensors if EMBEDDING.search(name)]
    if says_tied(config) and not heads and sources:
        return {**copies, "lm_head.weight": SHARED if SHARED in sources else sources[0]}
    return dict(copies)
