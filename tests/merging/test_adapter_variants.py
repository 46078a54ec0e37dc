"""Adapters that are more than W + s B A, merged into their base: what PEFT's formulas give, or a refusal by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.inputs import open_input
from tests.merging.models import adapter, folder, llama, result
from tests.paths import SHARED

MODULE = "model.layers.1.mlp.up_proj"
WEIGHT = f"{MODULE}.weight"
PREFIX = "base_model.model."


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path / "base", llama() | {f"{MODULE}.bias": torch.arange(24) / 10})


def merged(base: Path, tmp_path: Path, **more: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The merged tensors, and A and B of the adapter; its scale is 2."""
    path = adapter(tmp_path / "lora", str(base), llama(), [MODULE], **more)
    factors = load_file(path / "adapter_model.safetensors")
    a, b = (factors[f"{PREFIX}{MODULE}.lora_{side}.weight"] for side in "AB")
    return result(tmp_path / "out", "linear", [f"{base}+{path}"]), a, b


def test_biases_of_the_factors_are_within_the_scale(base: Path, tmp_path: Path) -> None:
    bias = torch.randn(24, generator=torch.Generator().manual_seed(3))
    whole = {f"{PREFIX}{MODULE}.lora_B.bias": bias}
    ours, a, b = merged(base, tmp_path, whole=whole, lora_bias=True)
    assert (ours[f"{MODULE}.bias"] - (torch.arange(24) / 10 + 2 * bias)).abs().max() < 1e-6
    assert (ours[WEIGHT] - llama()[WEIGHT] - 2 * b @ a).abs().max() < 1e-5
    bare = folder(tmp_path / "bare", llama())
    with pytest.raises(InputError, match=rf"changes {MODULE}\.bias \(lora_bias\), which .*bare has not"):
        result(tmp_path / "no", "linear", [f"{bare}+{tmp_path / 'lora'}"])
    with pytest.raises(InputError, match=rf"changes {MODULE}\.bias \(lora_bias\)") as refused:
        result(tmp_path / "no", "linear", [tmp_path / "lora"])
    assert "--as model" in (refused.value.hint or "")


def test_biases_that_were_trained_replace_the_base_s(base: Path, tmp_path: Path) -> None:
    bias = torch.ones(24)
    ours, *_ = merged(base, tmp_path, whole={f"{PREFIX}{MODULE}.base_layer.bias": bias}, bias="lora_only")
    assert torch.equal(ours[f"{MODULE}.bias"], bias)


def test_pissa_takes_the_largest_singular_values_out_first(base: Path, tmp_path: Path) -> None:
    """W - U_r S_r V_r + s B A: W + s B A would have the principal part twice."""
    ours, a, b = merged(base, tmp_path, init_lora_weights="pissa")
    weight = llama()[WEIGHT].double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    values[:4] = 0
    expected = (left * values) @ right + 2 * (b.double() @ a.double())
    assert (ours[WEIGHT] - expected).abs().max() < 1e-5


def test_olora_takes_the_first_of_the_orthogonal_basis_out(base: Path, tmp_path: Path) -> None:
    ours, a, b = merged(base, tmp_path, init_lora_weights="olora")
    weight = llama()[WEIGHT].double()
    columns, rows = torch.linalg.qr(weight)
    expected = weight - 2 * columns[:, :4] @ rows[:4] + 2 * (b.double() @ a.double())
    assert (ours[WEIGHT] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("initial", ["pissa", "olora"])
def test_an_untrained_adapter_of_these_gives_the_base_back(base: Path, tmp_path: Path, initial: str) -> None:
    path = adapter(tmp_path / "lora", str(base), llama(), [MODULE], init_lora_weights=initial)
    weight = llama()[WEIGHT]
    if initial == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        roots = (values[:4] / 2).sqrt()
        b, a = left[:, :4] * roots, roots[:, None] * right[:4]
    else:
        columns, rows = torch.linalg.qr(weight)
        b, a = columns[:, :4], rows[:4]
    names = {f"{PREFIX}{MODULE}.lora_{side}.weight": each.contiguous() for side, each in (("A", a), ("B", b))}
    save_file(names, path / "adapter_model.safetensors")
    ours = result(tmp_path / "out", "linear", [f"{base}+{path}"])
    assert (ours[WEIGHT] - weight).abs().max() < 1e-5
    with pytest.raises(InputError, match=f"moves a part of the base's weights \\(init_lora_weights '{initial}'\\)"):
        result(tmp_path / "no", "linear", [path])


@pytest.mark.parametrize("named", [[3, 39], {"embed_tokens": [3, 39]}])
def test_rows_of_single_tokens(base: Path, tmp_path: Path, named: Any) -> None:
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))
    stored = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": rows}
    ours, *_ = merged(base, tmp_path, whole=stored, trainable_token_indices=named)
    expected = llama()["model.embed_tokens.weight"].clone()
    expected[[3, 39]] = rows
    assert torch.equal(ours["model.embed_tokens.weight"], expected)


@pytest.mark.parametrize("named", [[3], [3, 40], [3, "x"], "x", {"lm_head": [3, 39]}])
def test_rows_that_are_not_named_are_refused(base: Path, tmp_path: Path, named: Any) -> None:
    stored = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 16)}
    path = adapter(tmp_path / "lora", str(base), llama(), [MODULE], whole=stored, trainable_token_indices=named)
    with pytest.raises(
        InputError, match=r"trainable_token_indices does not name the 2 rows|replaces rows of .* has not"
    ):
        result(tmp_path / "out", "linear", [f"{base}+{path}"])


@pytest.mark.parametrize(
    "key,value,part",
    [
        ("lora_bias", True, None),
        ("use_dora", True, None),
        ("trainable_token_indices", [1], None),
        ("r", 4, f"{MODULE}.lora_B.bias"),
        ("r", 4, f"{MODULE}.lora_magnitude_vector"),
        ("r", 4, "model.embed_tokens.token_adapter.trainable_tokens_delta"),
    ],
)
def test_a_file_and_a_config_that_differ_are_refused(tmp_path: Path, key: str, value: Any, part: str | None) -> None:
    """PEFT would leave the part out, or begin it anew: neither is what was trained."""
    whole = {} if part is None else {PREFIX + part: torch.ones(24)}
    path = adapter(tmp_path / "lora", "base", llama(), [MODULE], whole=whole, **{key: value})
    with pytest.raises(InputError, match=r"adapter_model\.safetensors and adapter_config\.json.* differ in"):
        open_input(str(path))


@pytest.mark.parametrize("part", ["lora_diag", "lora_A.bias", "lora_velora_embed", "lora_E"])
def test_other_parts_of_lora_are_refused_by_name(base: Path, tmp_path: Path, part: str) -> None:
    path = adapter(tmp_path / "lora", str(base), llama(), [MODULE], whole={f"{PREFIX}{MODULE}.{part}": torch.ones(4)})
    with pytest.raises(InputError, match=f"{part} is no part of LoRA"):
        open_input(str(path))


def test_a_rank_that_the_config_denies_is_refused(base: Path, tmp_path: Path) -> None:
    """The scale is alpha over one of the two, and no one knows which."""
    path = adapter(tmp_path / "lora", str(base), llama(), [MODULE], r=8)
    with pytest.raises(InputError, match=r"have rank 4, and adapter_config\.json gives it 8"):
        open_input(str(path))


def test_merged_factors_of_several_ranks_say_so(base: Path, tmp_path: Path) -> None:
    other = "model.layers.0.mlp.up_proj"
    paths = []
    for seed, name in enumerate("ab"):
        path = adapter(
            tmp_path / name, str(base), llama(), [MODULE, other], seed=seed, rank_pattern={"layers.0.mlp.up_proj": 2}
        )
        tensors = load_file(path / "adapter_model.safetensors")
        for side in "AB":
            key = f"{PREFIX}{other}.lora_{side}.weight"
            tensors[key] = (tensors[key][:2] if side == "A" else tensors[key][:, :2]).contiguous()
        save_file(tensors, path / "adapter_model.safetensors")
        paths.append(path)
    result(tmp_path / "factors", "linear", paths, **{"as": "factors"})
    opened = open_input(str(tmp_path / "factors"))
    assert [opened.rank(f"{each}.weight") for each in (MODULE, other)] == [4, 2]
    assert [opened.scale(f"{each}.weight") for each in (MODULE, other)] == [1.0, 1.0]


@pytest.mark.skipif(not (SHARED / "cases/17").is_dir(), reason="no shared cases here")
def test_the_cases(tmp_path: Path) -> None:
    cases = SHARED / "cases/17"
    with pytest.raises(InputError, match="alora_invocation_tokens is not read"):
        open_input(str(cases / "alora"))
    with pytest.raises(InputError, match=r"q_proj\.bias \(lora_bias\), which .* has not"):
        result(tmp_path / "out", "linear", [f"{cases / 'base'}+{cases / 'lorabias'}"])
    ours = result(tmp_path / "out", "linear", [f"{cases / 'base'}+{cases / 'pissa'}"])
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = load_file(cases / "base/model.safetensors")[name]
    factors = load_file(cases / "pissa/adapter_model.safetensors")
    a, b = (factors[f"{PREFIX}{name.removesuffix('weight')}lora_{side}.weight"] for side in "AB")
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert (ours[name] - (left[:, 4:] * values[4:]) @ right[4:] - 2 * b @ a).abs().max() < 1e-5
