"""Falcon Mamba, and models of Mamba layers beside attention, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.huggingface.families import check_family

FALCON_MAMBA = {"num_hidden_layers": 2, "state_size": 5}
CASES = {
    "falcon mamba": ("FalconMamba", FALCON_MAMBA),
    "falcon mamba, biases": (
        "FalconMamba",
        FALCON_MAMBA | {"use_bias": True, "time_step_rank": 3, "mixer_rms_eps": 1e-2},
    ),
    "falcon mamba, untied": (
        "FalconMamba",
        {"num_hidden_layers": 3, "tie_word_embeddings": False, "expand": 1, "conv_kernel": 3, "use_conv_bias": False},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)
