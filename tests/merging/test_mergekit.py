"""Against mergekit, where it is installed: the same folders, the same recipe, the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthe_core.merging.method import Method
from tests.merging.models import CONFIG, family, folder, llama, moved, result

mergekit = pytest.importorskip("mergekit", reason="mergekit is not installed")
WEIGHTS = [1.0, 0.5, 0.7, 1.0]


def theirs(out: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    run_merge(
        MergeConfiguration.model_validate(config), str(out), MergeOptions(copy_tokenizer=False, write_model_card=False)
    )
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


CASES: list[tuple[str, int, bool, dict[str, Any], dict[str, Any]]] = [
    ("linear", 4, False, {}, {"weight": WEIGHTS}),
    ("linear", 4, False, {"normalize": False}, {"weight": WEIGHTS}),
    ("slerp", 1, True, {"t": 0.3}, {}),
    ("nuslerp", 2, False, {}, {"weight": WEIGHTS}),
    ("nuslerp", 2, False, {"nuslerp_flatten": False}, {"weight": WEIGHTS}),
    ("nuslerp", 2, False, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, {"weight": WEIGHTS}),
    ("nuslerp", 2, True, {}, {"weight": WEIGHTS}),
    ("multislerp", 4, False, {}, {"weight": WEIGHTS}),
    ("multislerp", 4, True, {}, {"weight": WEIGHTS}),
    ("karcher", 4, False, {}, {}),
    ("karcher", 2, False, {"max_iter": 3}, {}),
    ("task_arithmetic", 4, True, {}, {"weight": WEIGHTS}),
    ("task_arithmetic", 4, True, {"normalize": True, "lambda": 0.7}, {"weight": WEIGHTS}),
    ("ties", 4, True, {}, {"weight": WEIGHTS}),
    ("ties", 4, True, {"density": 0.5}, {"weight": WEIGHTS}),
    ("ties", 4, True, {"normalize": False, "lambda": 0.6}, {"weight": WEIGHTS, "density": [0.2, 0.5, 1.0, 0.3]}),
    ("ties", 4, True, {"density": 0.5}, {"weight": [1.0, -0.5, 0.7, 1.0]}),
    ("breadcrumbs", 4, True, {}, {"weight": WEIGHTS}),
    ("breadcrumbs", 4, True, {"density": 0.5, "gamma": 0.1}, {"weight": WEIGHTS}),
    ("breadcrumbs", 4, True, {"density": 0.9, "gamma": 0.3}, {"weight": WEIGHTS}),
    ("breadcrumbs_ties", 4, True, {"density": 0.5, "gamma": 0.1}, {"weight": WEIGHTS}),
    ("model_stock", 3, True, {}, {}),
    ("model_stock", 4, True, {"filter_wise": True}, {}),
    ("sce", 4, True, {}, {}),
    ("sce", 4, True, {"select_topk": 0.3}, {}),
    ("nearswap", 1, True, {"t": 0.05}, {}),
    ("dare_linear", 4, True, {"density": 1.0}, {"weight": WEIGHTS}),
    # a gradient over the layers, and values by filter
    ("linear", 2, False, {}, {"weight": [[0.0, 0.3, 1.0], 0.5]}),
    (
        "slerp",
        1,
        True,
        {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": 0.2}, {"value": 0.4}]},
        {},
    ),
]


@pytest.mark.parametrize(
    "method,count,based,shared,own", CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_same_folder(
    tmp_path: Path, method: str, count: int, based: bool, shared: dict[str, Any], own: dict[str, Any]
) -> None:
    base, models = family(tmp_path, count)
    listed = [
        {"model": str(path), "parameters": {key: values[i] for key, values in own.items()}}
        for i, path in enumerate(models)
    ]
    config = {"merge_method": method, "models": listed, "parameters": shared, "dtype": "float32"}
    if based:
        config["base_model"] = str(base)
    if based and method in ("slerp", "nearswap"):
        listed = [{"model": str(base)}, *listed]  # mergekit wants both among the models
    expected = theirs(tmp_path / "theirs", config | {"models": listed})
    ours = result(tmp_path / "ours", method, listed, base if based else None, parameters=shared)
    assert ours.keys() == expected.keys()
    for name in expected:
        assert (ours[name] - expected[name]).abs().max() <= 1e-6, name


def test_layers_stacked(tmp_path: Path) -> None:
    """A model of more layers than its parents, by passthrough of slices."""
    _, (one, other) = family(tmp_path, 2)
    slices = [
        {"sources": [{"model": str(one), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(other), "layer_range": [1, 3], "parameters": {"scale": 0.5}}]},
    ]
    config = {"merge_method": "passthrough", "slices": slices, "dtype": "float32"}
    expected = theirs(tmp_path / "theirs", config)
    ours = result_of(tmp_path / "ours", config)
    assert ours.keys() == expected.keys()
    for name in expected:
        assert torch.equal(ours[name], expected[name]), name


def test_slices_merged(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    sources = [[{"model": str(p), "layer_range": [a, b]} for p in (base, *models)] for a, b in ((0, 1), (1, 3))]
    slices = [{"sources": each, "parameters": {"weight": w}} for each, w in zip(sources, (0.3, 0.8), strict=True)]
    config = {"merge_method": "ties", "base_model": str(base), "slices": slices, "parameters": {"density": 0.5}}
    config["dtype"] = "float32"
    expected = theirs(tmp_path / "theirs", config)
    ours = result_of(tmp_path / "ours", config)
    assert ours.keys() == expected.keys()
    for name in expected:
        assert (ours[name] - expected[name]).abs().max() <= 1e-6, name


def result_of(out: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    from synthe_core.merging.config import MergeSpec
    from synthe_core.merging.merge import merge

    list(merge(MergeSpec.model_validate(config), out=out))
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
@pytest.mark.parametrize("rescale", [True, False])
def test_random_methods(method: str, rescale: bool) -> None:
    """The same mask from the same seed; rescaled as mergekit does it."""
    from mergekit.merge_methods import merge_tensors

    base = llama()["model.layers.0.mlp.up_proj.weight"]
    models = [moved({"x": base}, seed)["x"] for seed in range(1, 5)]
    values: dict[str, Any] = {"weight": WEIGHTS, "density": 0.5, "rescale": rescale}
    torch.manual_seed(5)
    expected = merge_tensors([base, *models], method, parameters=values, base_index=0)
    parameters = {"weight": tuple(WEIGHTS), "density": (0.5,), "rescale": rescale, "rescale_by": "l1"}
    ours = Method(method)(models, base, parameters, generator=torch.Generator().manual_seed(5))
    assert (ours - expected).abs().max() <= 1e-6


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """mergekit computes in the inputs' dtype by default; with float32 set, only the last step rounds."""
    base = {name: tensor.bfloat16() for name, tensor in llama().items()}
    paths = [
        folder(tmp_path / str(i), {n: t.bfloat16() for n, t in moved(base, i).items()} if i else base, CONFIG)
        for i in range(3)
    ]
    listed = [{"model": str(path), "parameters": {"weight": 1.0, "density": 0.5}} for path in paths[1:]]
    config = {"merge_method": "task_arithmetic", "models": listed, "base_model": str(paths[0])}
    expected = theirs(tmp_path / "theirs", config | {"dtype": "float32", "out_dtype": "bfloat16"})
    ours = result(
        tmp_path / "ours", "task_arithmetic", [{**each, "parameters": {"weight": 1.0}} for each in listed], paths[0]
    )
    for name in expected:
        assert ours[name].dtype == torch.bfloat16
        assert (ours[name].float() - expected[name].float()).abs().max() <= 1e-6, name
