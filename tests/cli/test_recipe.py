"""`synthe recipe`, and the errors of invalid recipes with their place and cause."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe

Run = Callable[..., Any]


def test_show_prints_an_equal_recipe(synthe: Run, recipe: Path, tmp_path: Path) -> None:
    shown = synthe("recipe", "show", recipe, "--set", "train.lr=0.25")
    assert shown.exit_code == 0
    again = tmp_path / "again.yaml"
    again.write_text(shown.stdout)
    assert Recipe.load(again) == Recipe.load(recipe, ["train.lr=0.25"])


def test_show_counts_parameters_flops_and_state(synthe: Run, recipe: Path) -> None:
    output = json.loads(synthe("recipe", "show", recipe, "--json").stdout)
    loaded = Recipe.load(recipe)
    model = LanguageModel(loaded.model, 257)
    parts = dict(output["parameters"])
    total = parts.pop("total")
    assert total == sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["attention"] == sum(p.numel() for p in model.blocks[0].learners[0].parameters())
    # Two projections of width 32 to three and from one, two of the vocabulary (tied, so once), and the scores.
    seen = 16 - 16 * 15 / (2 * 32)
    assert parts["attention"] == 4 * 32 * 32
    hidden = parts["mlp"] // (3 * 32)
    assert output["flops_per_token"]["forward"] == 2 * (4 * 32 * 32 + 3 * 32 * hidden + 32 * 257) + 4 * 32 * seen
    assert output["flops_per_token"]["training"] == 3 * output["flops_per_token"]["forward"]
    # A window of 16 keys and values of width 32 and how much of it is filled, in float32, and the position.
    assert output["state_bytes"] == {
        "1": 2 * 32 * 4 + 4 + 8,
        "32": 16 * 2 * 32 * 4 + 4 + 8,
        "256": 16 * 2 * 32 * 4 + 4 + 8,
    }
    text = synthe("recipe", "show", recipe).stdout
    assert f"({total:,})" in text
    assert recipe.exists()


def test_an_untied_head_is_counted(synthe: Run, recipe: Path) -> None:
    parameters = json.loads(synthe("recipe", "show", recipe, "-s", "model.tie=false", "--json").stdout)["parameters"]
    assert parameters["head"] == parameters["embedding"] == 257 * 32
    assert parameters.pop("total") == sum(parameters.values())


def test_active_parameters_are_shown_for_sparse_models(synthe: Run, recipe: Path) -> None:
    experts = ("-s", "model.block.1={type: experts, experts: 4, top_k: 1, hidden: 8}")
    dense, sparse = (json.loads(synthe("recipe", "show", recipe, *each, "--json").stdout) for each in ((), experts))
    assert "active_parameters" not in dense
    blocks = Recipe.load(recipe).model.blocks
    assert sparse["active_parameters"] == sparse["parameters"]["total"] - blocks * 3 * (3 * 8 * 32)
    line = [
        text for text in synthe("recipe", "show", recipe, *experts).stdout.splitlines() if "active per token" in text
    ]
    share = sparse["active_parameters"] / sparse["parameters"]["total"]
    assert len(line) == 1 and line[0].endswith(f" {share:.1%}")
    assert "active per token" not in synthe("recipe", "show", recipe).stdout


def test_validate_prints_one_line(synthe: Run, recipe: Path) -> None:
    shown = synthe("recipe", "validate", recipe)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"{recipe}: valid, ")
    assert shown.stdout.count("\n") == 1


def test_a_shipped_recipe_is_loaded_by_name(
    synthe: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes" / "baselines").mkdir(parents=True)
    recipe.rename(tmp_path / "recipes" / "baselines" / "umbrella.yaml")
    monkeypatch.chdir(tmp_path)
    shown = synthe("recipe", "validate", "baselines/umbrella")
    assert shown.stdout.startswith("recipes/baselines/umbrella.yaml: valid")
    for wrong in ("baselines/umbrela", "umbrela.yaml", "recipes/baselines/umbrela.yaml"):
        done = synthe("recipe", "validate", wrong)
        assert done.exit_code == 2
        assert (
            done.stderr == f"error: no such recipe: '{wrong}'\nhint: did you mean 'recipes/baselines/umbrella.yaml'?\n"
        )


def test_a_missing_file_suggests_a_similar_name(synthe: Run, recipe: Path) -> None:
    wrong = recipe.with_name("smal.yaml")
    done = synthe("recipe", "validate", wrong)
    assert done.exit_code == 2
    assert done.stderr == f"error: no such recipe: '{wrong}'\nhint: did you mean '{recipe}'?\n"


GOOD = "model: {width: 32, blocks: 1, block: [mlp]}\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("model:\n  width: [1, 2\n", "bad.yaml:3:1: ", "the YAML is malformed here"),
        ("model:\n\twidth: 1\n", "bad.yaml:2:1: ", "the YAML is malformed here"),
        ("", "bad.yaml is not a mapping", "a recipe has the keys model, data, train, runtime"),
        ("- 1\n", "bad.yaml is not a mapping", "a recipe has the keys model, data, train, runtime"),
        ("name: a\n", "bad.yaml: missing key 'model'", "`synthe recipe schema` lists every key"),
        (GOOD + "trian: {}\n", "bad.yaml:2:1: unknown key 'trian'", "did you mean 'train'?"),
        (GOOD + "train: {lrr: 1}\n", "bad.yaml:2:9: unknown key 'train.lrr'", "did you mean 'lr'?"),
        (GOOD + "train:\n  lr: fast\n", "bad.yaml:3:3: train.lr: ", "`synthe recipe schema` lists every key"),
        (GOOD + "train: {budget: 3 moons}\n", "'3 moons' is not a budget", "`synthe recipe schema` lists every key"),
        ("model: {width: 32, blocks: 1, block: [mpl]}\n", "bad.yaml:1:39: ", "did you mean 'mlp'?"),
        (
            "model:\n  width: 32\n  blocks: 1\n  block:\n    - {type: attention, head: 2}\n",
            "bad.yaml:5:25: unknown key 'model.block.0.head'",
            "did you mean 'heads'?",
        ),
        (
            "model: {width: 32, blocks: 1, block: [{type: attention, heads: 5}]}\n",
            "width 32 is not divisible by heads 5",
            "the nearest that works is heads: 4",
        ),
        (GOOD + "data: {tokenizer: bites}\n", "unknown tokenizer 'bites'", "did you mean 'bytes'?"),
    ],
)
def test_an_invalid_recipe_names_the_place(synthe: Run, tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    for verb in (["recipe", "validate"], ["train"]):
        done = synthe(*verb, path)
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr.splitlines()[0]
        assert done.stderr.splitlines()[1:] == [f"hint: {hint}"]
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        ("train.lr", "--set train.lr: expected key=value", "for example --set train.lr=1e-3"),
        ("train.lr=[", "'[' is not a YAML value", None),
        ("train.lrr=1", "unknown key 'train.lrr'", "did you mean 'lr'?"),
        ("model.block.7.type=mlp", "'7' is no index of a list of 2", "counting starts at 0"),
        ("train.lr.peak=1", "unknown key", None),
    ],
)
def test_an_invalid_override_is_an_error(
    synthe: Run, recipe: Path, assignment: str, message: str, hint: str | None
) -> None:
    done = synthe("recipe", "validate", recipe, "--set", assignment)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    if hint:
        assert message in done.stderr
        assert f"hint: {hint}" in done.stderr


def test_a_binary_file(synthe: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    done = synthe("recipe", "validate", path)
    assert done.exit_code == 2
    assert "not UTF-8 text (byte 6)" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_read_permission(synthe: Run, recipe: Path) -> None:
    recipe.chmod(0)
    done = synthe("recipe", "validate", recipe)
    assert done.exit_code == 2
    assert "Permission denied" in done.stderr


def test_the_schema_describes_recipes(synthe: Run) -> None:
    schema = json.loads(synthe("recipe", "schema").stdout)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert "heads" in json.dumps(schema)  # the learners' keys are in it
    delta = json.loads(synthe("recipe", "schema", "attention").stdout)
    assert delta["properties"]["window"]["description"]
    done = synthe("recipe", "schema", "atention")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: unknown learner 'atention'\nhint: did you mean 'attention'?\n",
    )


def test_validate_checks_that_data_sources_exist(synthe: Run) -> None:
    done = synthe("recipe", "validate", "tiny", "--set", "data.sources=stdlb")
    assert done.exit_code == 2 and "did you mean 'stdlib'?" in done.stderr
