"""The longest text that a published model is made for."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.published import Config

KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
"""Where config.json has it, the most usual key first."""
BUILT_IN = ("default", "llama3", "longrope", "su", "mrope", "proportional")
"""Scalings of the rotary angles after which the config's number counts as it is."""


def context_limit(config: Config) -> int | None:
    """Tokens, None for a model whose config does not limit them.

    Linear and dynamic scaling multiply the config's number; YaRN multiplies the original one that its own parameters
    name, or else the config's.
    """
    stated: int | None = next((value for key in KEYS if _is_count(value := config.get(key))), None)
    if stated is None:
        return None
    given = _scaling(config)
    kind, factor = given.get("rope_type", given.get("type", "default")), given.get("factor")
    if kind in BUILT_IN or isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < 2**31:
        return stated
    original = given.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int) and _is_count(original):
        return max(stated, int(original * factor))
    return int(stated * factor)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**53


def _scaling(config: Config) -> dict[str, Any]:
    """The scaling of the rotary angles; of several, by kinds of layers, that of full attention."""
    for key in ("rope_parameters", "rope_scaling"):
        given = config.get(key)
        if isinstance(given, dict):
            inner = given.get("full_attention")
            return inner if isinstance(inner, dict) else given
    return {}
