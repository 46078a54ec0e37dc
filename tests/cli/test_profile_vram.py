"""`synthe profile-vram`: parts, cards, what fits and what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_the_text_output_has_parts_and_cards(synthe: Run, recipe: Path) -> None:
    shown = synthe("profile-vram", recipe)
    assert (shown.exit_code, shown.stderr) == (0, "")
    for word in ("training", "serving", "parameters", "activations", "peak", "this machine", "H200 141GB", "attention"):
        assert word in shown.stdout


def test_json_has_bytes(synthe: Run, recipe: Path) -> None:
    output = json.loads(synthe("profile-vram", recipe, "--json", "--train", "--batch", "2", "--gpu", "8GB").stdout)
    assert output["training"]["peak"] == pytest.approx(sum(output["training"]["parts"].values()), abs=8)
    assert output["training"]["rows"] == 2
    assert "serving" not in output
    longer = json.loads(synthe("profile-vram", recipe, "--json", "--train", "-b", "2", "-c", "64").stdout)
    assert longer["training"]["parts"]["activations"] > output["training"]["parts"]["activations"]


def test_an_adapter_over_quantised_matrices_takes_less(synthe: Run, recipe: Path) -> None:
    wide = ("profile-vram", recipe, "--json", "--train", "--batch", "2", "--set", "model.width=64")
    parts = []
    for lora in ("rank=2", "rank=2,quantize=int4", "rank=2,quantize=nf4,double_quant=true"):
        shown = synthe(*wide, "--lora", lora)
        assert (shown.exit_code, shown.stderr) == (0, "")
        parts.append(json.loads(shown.stdout)["training"]["parts"])
    whole = json.loads(synthe(*wide).stdout)["training"]["parts"]
    assert whole["optimizer"] > 4 * parts[0]["optimizer"]
    assert parts[0]["parameters"] > 2 * parts[1]["parameters"] > 2 * parts[2]["parameters"]


def test_fit_prints_flags_of_train(synthe: Run, recipe: Path) -> None:
    shown = synthe("profile-vram", "--fit", recipe, "--gpu", "8GB")
    assert shown.stdout.splitlines()[-1] == "--set train.micro_batch=2"
    output = json.loads(synthe("profile-vram", "--fit", recipe, "--gpu", "8GB", "--json").stdout)
    assert output["set"] == {"train.micro_batch": 2}
    assert output["next_larger"] is None


def test_a_page_with_the_curves(synthe: Run, recipe: Path, tmp_path: Path) -> None:
    page = tmp_path / "memory.html"
    shown = synthe("profile-vram", recipe, "--serve", "--html", page)
    assert shown.stdout.splitlines()[-1] == str(page)
    assert page.read_text().count("<svg") == 1


@pytest.mark.slow
def test_measure_adds_a_real_step(synthe: Run, recipe: Path) -> None:
    output = json.loads(synthe("profile-vram", recipe, "--train", "--measure", "--json").stdout)
    assert output["training"]["measured"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "9XYZ"], "--gpu 9XYZ: no such card"),
        (["--html", "no/such/folder/x.html"], "no such folder"),
        (["--snapshot", "x.pickle"], "--snapshot needs --measure"),
        (["--set", "model.width=0"], "width"),
    ],
)
def test_invalid_arguments_are_one_line(synthe: Run, recipe: Path, arguments: list[str], says: str) -> None:
    shown = synthe("profile-vram", recipe, *arguments)
    assert shown.exit_code == 2
    assert says in shown.stderr.splitlines()[0]


def test_a_card_too_small_for_anything(synthe: Run, recipe: Path) -> None:
    shown = synthe("profile-vram", "--fit", recipe, "--gpu", "500MB")
    assert shown.exit_code == 1
    assert "not even one sequence" in shown.stderr
