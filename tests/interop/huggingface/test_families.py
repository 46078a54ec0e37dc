"""The first architectures through the check that every family has."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.interop.huggingface.families import ARCHITECTURES, FILES, gemma, joined
from tests.interop.huggingface.families import check_family
from tests.paths import ROOT

FAMILIES = ROOT / "synthe_core/interop/huggingface/families"
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 72, "num_hidden_layers": 3}
CASES = {
    "llama": ("Llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("Llama", SIZES | {"tie_word_embeddings": True, "head_dim": 10}),
    "qwen3": ("Qwen3", SIZES | {"head_dim": 12, "num_key_value_heads": 1}),
    "mamba2": ("Mamba2", {"num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 8}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)


def test_every_file_with_a_table_is_in_the_table_of_all() -> None:
    places = {Path(each.__file__).stem for each in FILES if each.__file__}
    files = {path.stem for path in FAMILIES.glob("*.py") if "ARCHITECTURES: Architectures" in path.read_text()}
    assert places == files
    assert len(ARCHITECTURES) == sum(len(each.ARCHITECTURES) for each in FILES)


def test_a_name_in_two_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="two families name GemmaForCausalLM"):
        joined([gemma.ARCHITECTURES, {"GemmaForCausalLM": gemma.gemma2}])
