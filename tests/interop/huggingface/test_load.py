"""Which published folders our learners run, and which transformers runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.interop.load import load_model
from synthe_core.model.language_model import LanguageModel

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface.transformers_model import TransformersModel  # noqa: E402
from tests.interop.huggingface.served_models import folder, gpt2  # noqa: E402

PROPORTIONAL = {"rope_type": "proportional", "factor": 4.0, "rope_theta": 10_000.0}
BITNET = {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "options", "runs"),
    [
        ("Llama", {}, LanguageModel),
        ("Llama", {"rope_parameters": PROPORTIONAL}, TransformersModel),
        ("Llama", {"hidden_act": "mish"}, TransformersModel),
        ("BitNet", BITNET, TransformersModel),
    ],
    ids=["known", "an option that is not expressed", "another activation", "another architecture"],
)
def test_what_our_learners_do_not_express_runs_by_transformers(
    tmp_path: Path, kind: str, options: dict[str, Any], runs: type
) -> None:
    path = folder(tmp_path / "model", kind, **options)
    loaded = load_model(path)
    assert isinstance(loaded.model, runs)
    assert loaded.max_length == 64
    text = torch.randint(loaded.vocab, (1, 30), generator=torch.Generator().manual_seed(0))
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(text)[0].float(), peer(text).logits, rtol=0, atol=1e-4)


def test_a_damaged_folder_is_no_reason_to_ask_transformers(tmp_path: Path) -> None:
    path = gpt2(tmp_path / "gpt2")
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="damaged"):
        load_model(path)
