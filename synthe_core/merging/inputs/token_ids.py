"""Ids of special tokens in config.json and generation_config.json, when a merge changes the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_new_ids(values: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the ids that the tokens have in the tokenizer.json `new`; those that it lacks are left out.

    old: the tokenizer.json that the ids are of.
    """
    names = {index: token for token, index in _vocabulary(old).items()}
    ids = _vocabulary(new)

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [ids[names[i]] for i in value if names.get(i) in ids]
        return ids.get(names.get(value, "")) if isinstance(value, int) else value

    changed = {key: moved(value) if key.endswith("_token_id") else value for key, value in values.items()}
    return {key: value for key, value in changed.items() if value is not None or values[key] is None}


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    vocab = content.get("model", {}).get("vocab", {})
    tokens = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    return tokens | {token["content"]: token["id"] for token in content.get("added_tokens", ())}
