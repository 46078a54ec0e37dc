"""A tied embedding and head are one parameter, however many copies of it the files store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.events import Result
from synthe_core.merging.difference import diff
from synthe_core.merging.extract import extract_lora
from synthe_core.merging.inputs import open_input
from tests.merging.models import CONFIG, adapter, folder, llama, moved, result
from tests.paths import SHARED

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = CONFIG | {"tie_word_embeddings": True}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"density": 0.4}),
    ("dare_ties", {"density": 0.4}),
    ("dare_linear", {"density": 0.4}),
    ("della", {"density": 0.4, "epsilon": 0.1}),
    ("task_arithmetic", {}),
]


def tied(seed: int, copy: bool) -> dict[str, Tensor]:
    tensors = moved(llama(), seed) if seed else llama()
    del tensors[HEAD]
    return tensors | ({HEAD: tensors[EMBEDDING].clone()} if copy else {})


@pytest.mark.parametrize("method,parameters", METHODS, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize(
    "stored", [(False, False, False), (False, True, False), (True, False, True), (True, True, True)]
)
def test_copies_are_merged_as_one(
    tmp_path: Path, stored: tuple[bool, ...], method: str, parameters: dict[str, Any]
) -> None:
    """The result is the same whichever files store the head, and stores it as the base does."""
    base, one, other = (folder(tmp_path / f"m{i}", tied(i, copy), TIED) for i, copy in enumerate(stored))
    bare = [folder(tmp_path / f"bare{i}", tied(i, False), TIED) for i in range(3)]
    ours = result(tmp_path / "out", method, [one, other], base, parameters=parameters)
    expected = result(tmp_path / "expected", method, bare[1:], bare[0], parameters=parameters)
    assert (HEAD in ours) == stored[0] and not torch.equal(ours[EMBEDDING], tied(0, False)[EMBEDDING])
    if stored[0]:
        assert torch.equal(ours.pop(HEAD), ours[EMBEDDING])
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True


def test_a_config_that_says_nothing_is_read_from_the_tensors(tmp_path: Path) -> None:
    """As of GPT-2, whose default is to be tied."""
    config = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
    a, b = folder(tmp_path / "a", tied(0, False), config), folder(tmp_path / "b", tied(1, True), config, files=3)
    assert HEAD not in result(tmp_path / "out", "linear", [a, b])
    ours = result(tmp_path / "shards", "dare_linear", [a], b, parameters={"density": 0.5}, shard_bytes=2000)
    assert torch.equal(ours[HEAD], ours[EMBEDDING])
    different = folder(tmp_path / "c", llama(), config)
    with pytest.raises(InputError, match=r"has no tensor lm_head\.weight|has a tensor lm_head\.weight"):
        result(tmp_path / "no", "linear", [a, different])


def test_two_matrices_stay_two(tmp_path: Path) -> None:
    """tie_word_embeddings false: equal values are a coincidence. True, and the values differ: as transformers does."""
    equal = [folder(tmp_path / name, tied(i, True), CONFIG) for i, name in enumerate("ab")]
    assert open_input(str(equal[0])).tied == {} == open_input(str(equal[0])).copies
    ours = result(tmp_path / "out", "dare_linear", equal[1:], equal[0], parameters={"density": 0.5})
    assert not torch.equal(ours[HEAD], ours[EMBEDDING])
    apart = [folder(tmp_path / name, moved(llama(), i), TIED) for i, name in enumerate("cd")]
    merged = result(tmp_path / "apart", "linear", apart)
    assert not torch.equal(merged[HEAD], merged[EMBEDDING]) and open_input(str(apart[0])).tied == {}


def test_t5_shares_its_embedding_in_three_places(tmp_path: Path) -> None:
    def model(path: Path, seed: int, stored: tuple[str, ...]) -> Path:
        shared = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
        tensors = {"shared.weight": shared, "encoder.block.0.weight": torch.ones(4, 4)}
        return folder(path, tensors | {name: shared.clone() for name in stored}, {"model_type": "t5", "vocab_size": 12})

    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    a, b = model(tmp_path / "a", 0, names), model(tmp_path / "b", 1, ())
    ours = result(tmp_path / "out", "dare_linear", [b], a, parameters={"density": 0.5})
    assert all(torch.equal(ours[name], ours["shared.weight"]) for name in names) and len(ours) == 5
    assert len(result(tmp_path / "bare", "linear", [b, a])) == 2


def test_diff_and_extract(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", tied(0, False), TIED), folder(tmp_path / "b", tied(1, True), TIED)
    *_, compared = diff(str(a), str(b))
    assert isinstance(compared, Result) and compared.values["only"] == []
    list(extract_lora(str(a), str(b), rank=16, out=tmp_path / "lora", rest=True))
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["ensure_weight_tying"] is True
    ours = result(tmp_path / "back", "linear", [f"{b}+{tmp_path / 'lora'}"])
    moved_twice = tied(1, False)[EMBEDDING] + (tied(1, False)[EMBEDDING] - tied(0, False)[EMBEDDING])
    assert (ours[EMBEDDING] - moved_twice).abs().max() < 1e-5 and torch.equal(ours[HEAD], ours[EMBEDDING])


@pytest.mark.parametrize("copy", [True, False])
def test_an_adapter_of_one_of_the_two_is_refused(tmp_path: Path, copy: bool) -> None:
    base = folder(tmp_path / "base", tied(0, copy), TIED)
    embedding = {
        f"base_model.model.model.embed_tokens.lora_embedding_{s}": t
        for s, t in zip("AB", (torch.ones(4, 40), torch.ones(16, 4)), strict=True)
    }
    lora = adapter(tmp_path / "lora", str(base), llama(), [], whole=embedding)
    with pytest.raises(InputError, match=r"adapts model\.embed_tokens\.weight, which is the same matrix as lm_head"):
        result(tmp_path / "out", "linear", [f"{base}+{lora}"])
    head = adapter(tmp_path / "head", str(base), llama(), ["lm_head"])
    with pytest.raises(InputError, match=r"adapts lm_head\.weight, which is the same matrix as model\.embed_tokens"):
        result(tmp_path / "out", "linear", [f"{base}+{head}"])
    both = adapter(tmp_path / "both", str(base), llama(), [], whole=embedding, ensure_weight_tying=True)
    ours = result(tmp_path / "out", "linear", [f"{base}+{both}"])
    assert (HEAD in ours) == copy and (ours[EMBEDDING] - tied(0, False)[EMBEDDING] - 8.0).abs().max() < 1e-5


@pytest.mark.parametrize("copy", [True, False])
def test_modules_that_are_saved_for_both_places_must_agree(tmp_path: Path, copy: bool) -> None:
    base = folder(tmp_path / "base", tied(0, copy), TIED)
    values = torch.randn(40, 16)
    names = [f"base_model.model.{name}" for name in (EMBEDDING, HEAD)]
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    alike = adapter(tmp_path / "alike", str(base), llama(), [], whole={n: values.clone() for n in names}, **saved)
    ours = result(tmp_path / "out", "linear", [f"{base}+{alike}"])
    assert torch.equal(ours[EMBEDDING], values) and (HEAD in ours) == copy
    apart = {name: values * place for place, name in enumerate(names, start=1)}
    with pytest.raises(InputError, match="which is the same matrix as"):
        result(
            tmp_path / "no",
            "linear",
            [f"{base}+{adapter(tmp_path / 'apart', None, llama(), [], whole=apart, **saved)}"],
        )
    alone = adapter(tmp_path / "alone", None, llama(), [], whole={names[0]: values}, **saved)
    with pytest.raises(InputError, match="which is the same matrix as"):
        result(tmp_path / "no", "linear", [f"{base}+{alone}"])


@pytest.mark.skipif(not (SHARED / "cases/15").is_dir(), reason="no shared cases here")
@pytest.mark.parametrize("method", ["dare_linear", "della", "linear"])
def test_the_case(tmp_path: Path, method: str) -> None:
    a, b = SHARED / "cases/15/a", SHARED / "cases/15/b"
    base, models = (None, [a, b]) if method == "linear" else (b, [a])
    parameters = {} if method == "linear" else {"density": 0.5} | ({"epsilon": 0.1} if method == "della" else {})
    ours = result(tmp_path / "out", method, models, base, parameters=parameters)
    assert (HEAD in ours) == (method != "linear")
    assert HEAD not in ours or torch.equal(ours[HEAD], ours[EMBEDDING])
