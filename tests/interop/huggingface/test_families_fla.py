"""flash-linear-attention's checkpoints in our learners: what its own models computed is stored beside their weights.

`make_fla_fixtures.py` makes them; `model.safetensors` is as fla saves it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.published import Config, UnsupportedModel
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.families import GRADIENTS, LOGITS, assert_close, published_gradients

FOLDER = Path(__file__).parent / "fla"
FOLDERS = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_and_gradients_are_those_of_fla(name: str) -> None:
    folder = FOLDER / name
    expected = load_file(folder / "expected.safetensors")
    text, logits = expected.pop("text"), expected.pop("logits")
    model = Checkpoint.open(folder).model()
    with torch.no_grad():
        assert_close(model(text)[0], logits, LOGITS, "the logits of a text")
        state, pieces = None, []
        for piece in text.split([11, 4, text.shape[1] - 35, *[1] * 20], dim=1):
            part, state = model(piece, state)
            pieces.append(part)
        assert_close(torch.cat(pieces, 1), logits, LOGITS, "the logits of pieces and of decoded tokens")
    gradients = published_gradients(folder, model, text[:, :-1], text[:, 1:])
    given = {key.removeprefix("gradient."): value for key, value in expected.items()}
    assert given.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert_close(gradient, given[key], GRADIENTS, f"the gradient of {key}")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("rwkv7", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("rwkv7", {"value_dim": [32, 32, 32]}, "value_dim is"),
    ("rwkv7", {"attn": {"layers": [1], "num_heads": 2}}, "attn is"),
    ("delta-net", {"use_beta": False}, "use_beta is False"),
    ("delta-net", {"qk_activation": "relu"}, "qk_activation is 'relu'"),
    ("gated-delta-net", {"output_gate_activation": "relu"}, "output_gate_activation is 'relu'"),
    ("gated-delta-net", {"hidden_act": "powlu"}, "hidden_act is 'powlu'"),
    ("gated-delta-product", {"num_householder": 5}, "num_householder is 5"),
    ("kda", {"attnres_block_size": 2}, "attnres_block_size is 2"),
    ("kda", {"safe_gate": True}, "safe_gate is True"),
    ("gla", {"feature_map": "relu"}, "feature_map is 'relu'"),
    ("gla", {"expand_k": 0.55}, "expand_k is 0.55"),
    ("retnet", {"feature_map": "relu"}, "feature_map is 'relu'"),
    ("retnet", {"num_kv_heads": 1}, "num_kv_heads is 1"),
    ("hgrn2", {"use_short_conv": True}, "use_short_conv is True"),
    ("hgrn2", {"expand_ratio": 5}, "expand_ratio is 5"),
    ("mesa-net", {"max_cg_step_decoding": 10}, "max_cg_step_decoding is 10"),
    ("forgetting-transformer", {"qk_norm": True}, "qk_norm is True"),
    ("forgetting-transformer", {"window_size": 8}, "window_size is 8"),
    ("mamba2", {"D_has_hdim": True}, "D_has_hdim is True"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED, ids=str)
def test_what_is_not_expressed_is_refused_by_name(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | options), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=message):
        plan(Config.read(folder / "config.json"))
