"""Quantised weights are refused by name, and numbers that the result's type cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.difference import diff
from synthe_core.merging.extract import extract_lora
from synthe_core.merging.inputs import open_input
from tests.merging.models import CONFIG, adapter, folder, llama, moved, result
from tests.paths import SHARED

MODULE = "model.layers.0.self_attn.q_proj"
GPTQ = {
    "qweight": torch.ones(2, 16, dtype=torch.int32),
    "qzeros": torch.ones(1, 2, dtype=torch.int32),
    "scales": torch.ones(1, 16, dtype=torch.float16),
    "g_idx": torch.zeros(16, dtype=torch.int32),
}
KINDS: dict[str, dict[str, Tensor]] = {
    "gptq": GPTQ,
    "awq": {name: tensor for name, tensor in GPTQ.items() if name != "g_idx"},
    "nf4": {
        "weight": torch.ones(128, 1, dtype=torch.uint8),
        "weight.absmax": torch.ones(4),
        "weight.quant_map": torch.ones(16),
        "weight.quant_state.bitsandbytes__nf4": torch.ones(8, dtype=torch.uint8),
    },
    "int8 of bitsandbytes": {"weight": torch.ones(16, 16, dtype=torch.int8), "SCB": torch.ones(16)},
    "int8 alone": {"weight": torch.ones(16, 16, dtype=torch.int8)},
    "fp8": {"weight": torch.ones(16, 16).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)},
    "fp8 alone": {"weight": torch.ones(16, 16).to(torch.float8_e4m3fn)},
    "compressed": {"weight_packed": torch.ones(16, 2, dtype=torch.int32), "weight_scale": torch.ones(16, 1)},
}


def quantised(path: Path, kind: str, seed: int = 0, **config: Any) -> Path:
    tensors = llama(seed=seed)
    del tensors[f"{MODULE}.weight"]
    return folder(path, tensors | {f"{MODULE}.{name}": each for name, each in KINDS[kind].items()}, CONFIG | config)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_refused(tmp_path: Path, kind: str) -> None:
    """By their tensors alone, as whichever input of whichever verb."""
    models = [str(quantised(tmp_path / name, kind, seed)) for seed, name in enumerate("ab")]
    plain = str(folder(tmp_path / "plain", llama()))
    for call in (
        lambda: result(tmp_path / "out", "linear", models),
        lambda: result(tmp_path / "out", "ties", [plain, models[0]], plain),
        lambda: list(diff(plain, models[0])),
        lambda: list(extract_lora(plain, models[0], rank=2, out=tmp_path / "out")),
        lambda: result(
            tmp_path / "out",
            "linear",
            [adapter(tmp_path / f"l{len(list(tmp_path.iterdir()))}", None, llama(), [MODULE])],
            models[0],
        ),
    ):
        with pytest.raises(InputError, match="cannot be merged") as refused:
            call()
        assert "\n" not in refused.value.message and "original model" in (refused.value.hint or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", None])
def test_a_config_that_says_so_is_enough(tmp_path: Path, method: str | None) -> None:
    settings = {"quant_method": method, "bits": 4} if method else {"load_in_4bit": True}
    models = [folder(tmp_path / name, llama(), CONFIG | {"quantization_config": settings}) for name in "ab"]
    with pytest.raises(InputError, match=f"quantised by {method or 'an unnamed method'}"):
        result(tmp_path / "out", "linear", models)
    for name in "ab":
        folder(tmp_path / name, llama(), CONFIG | {"quantization_config": None})
    assert result(tmp_path / "out", "linear", models).keys() == llama().keys()


def test_integer_buffers_are_not_weights(tmp_path: Path) -> None:
    """Masks and positions, which old checkpoints store, are the first model's."""
    buffers = {
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "rotary.position_ids": torch.arange(8)[None],
        "steps": torch.tensor(5),
        "mask": torch.ones(3, dtype=torch.bool),
        "temperature": torch.tensor(0.5),  # no dimensions
    }
    a = folder(tmp_path / "a", llama() | buffers)
    b = folder(tmp_path / "b", moved(llama(), 1) | buffers | {"temperature": torch.tensor(1.5)})
    for method in ("linear", "slerp", "ties", "dare_ties", "della", "breadcrumbs"):
        parameters = {"t": 0.5} if method == "slerp" else {}
        models, base = ([a, b], None) if method == "linear" else ([b], a)
        ours = result(tmp_path / method, method, models, base, parameters=parameters)
        assert all(torch.equal(ours[name], buffers[name]) for name in list(buffers)[:4])
        assert ours["temperature"].shape == () and torch.isfinite(ours["temperature"])
    assert torch.equal(ours["steps"], torch.tensor(5))


def test_an_adapter_in_integers_is_refused(tmp_path: Path) -> None:
    path = adapter(
        tmp_path / "a", None, llama(), [MODULE], whole={"base_model.model.x": torch.ones(2, dtype=torch.int8)}
    )
    with pytest.raises(InputError, match=r"base_model\.model\.x has no floats"):
        open_input(str(path))


@pytest.mark.parametrize("dtype", ["float16", None])
def test_numbers_that_float16_cannot_hold_are_named(tmp_path: Path, dtype: str | None) -> None:
    """Also where the type is the base's, and the merge itself makes them large."""
    factor, stored = (1e5, torch.float32) if dtype else (6e4, torch.float16)
    tensors = {name: tensor.to(stored) for name, tensor in llama().items()}
    tensors["lm_head.weight"][0, 0] = factor
    models = [folder(tmp_path / name, tensors) for name in "ab"]
    options: dict[str, Any] = {"dtype": dtype, "parameters": {"weight": 1.0, "normalize": bool(dtype)}}
    with pytest.raises(
        InputError, match=r"lm_head.weight has numbers up to 1.*, and float16 holds at most 65504"
    ) as refused:
        result(tmp_path / "out", "linear", models, **options)
    assert "--dtype bfloat16 or float32" in (refused.value.hint or "") and not (tmp_path / "out").exists()
    ours = result(tmp_path / "out", "linear", models, **options | {"dtype": "bfloat16"})
    assert torch.isfinite(ours["lm_head.weight"]).all()


def test_a_merge_that_overflows_is_named(tmp_path: Path) -> None:
    models = [folder(tmp_path / name, {n: t * 1e10 for n, t in llama().items()}) for name in "ab"]
    for weight in (1e39, float("nan"), -float("inf")):
        with pytest.raises(InputError, match=r"weight .*: input should be"):
            result(tmp_path / "out", "linear", models, parameters={"weight": weight})
    with pytest.raises(InputError, match=r"the merged .* is not finite"):
        result(tmp_path / "out", "linear", models, parameters={"weight": 1e30, "normalize": False})


def test_float64_that_float32_cannot_hold_is_named(tmp_path: Path) -> None:
    wide = {name: tensor.double() for name, tensor in llama().items()}
    wide["model.norm.weight"][0] = 1e300
    models = [folder(tmp_path / name, wide) for name in "ab"]
    with pytest.raises(InputError, match=r"model.norm.weight has numbers up to 1e\+300, and float32") as refused:
        result(tmp_path / "out", "linear", models, dtype="float32")
    assert "--dtype float64" in (refused.value.hint or "")
    assert result(tmp_path / "out", "linear", models)["model.norm.weight"][0] == 1e300


@pytest.mark.skipif(not (SHARED / "cases/16").is_dir(), reason="no shared cases here")
def test_the_cases(tmp_path: Path) -> None:
    cases = SHARED / "cases/16"
    for pair in (("g1", "g2"), ("n1", "n2")):
        with pytest.raises(InputError, match="quantised by"):
            result(tmp_path / "out", "linear", [cases / name for name in pair])
    with pytest.raises(InputError, match="float16 holds at most 65504"):
        result(tmp_path / "out", "linear", [cases / "o1", cases / "o2"], dtype="float16")


@pytest.mark.parametrize("key", ["num_hidden_layers", "intermediate_size"])
def test_a_config_beyond_the_tensors_is_refused(tmp_path: Path, key: str) -> None:
    """The result would be a model that nothing loads."""
    other = str(folder(tmp_path / "a", llama(), CONFIG | {key: 10**9}))
    with pytest.raises(InputError, match=f"{key} is 1000000000"):
        result(tmp_path / "out", "linear", [other, str(folder(tmp_path / "b", llama(seed=1)))])
    assert not (tmp_path / "out").exists()
