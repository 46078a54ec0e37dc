"""The longest text of a published model, by its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthe_core.interop.huggingface.context_limit import context_limit
from synthe_core.interop.huggingface.published import Config


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 8192, "rope_scaling": None}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "factor": 32.0}}, 131072),
        (
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 4096, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0},
                                                               "sliding_attention": {"rope_type": "default"}}}, 32768),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": float("inf")}}, 4096),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_what_a_config_says(values: dict[str, Any], limit: int | None) -> None:
    assert context_limit(Config(Path("config.json"), values)) == limit
