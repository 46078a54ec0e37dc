"""The grid of a sweep: every combination, checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.sweep.grid import MAX_NAME, Axis, parse_axis, plan_runs
from tests.sweep.recipes import write_recipe


def names(path: Path, *axes: str, overrides: tuple[str, ...] = ()) -> list[str]:
    return [run.name for run in plan_runs([("small", path)], [parse_axis(each) for each in axes], overrides)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.lr=1e-3,2e-3", ("1e-3", "2e-3")),
        (
            "model.block=[delta, mlp],[{type: mamba2, head_size: 8}, mlp]",
            ("[delta, mlp]", "[{type: mamba2, head_size: 8}, mlp]"),
        ),
        ('train.sample="a, b",c', ('"a, b"', "c")),
        (" seed = 0 , 1", ("0", "1")),
    ],
)
def test_commas_split_values_outside_of_brackets(text: str, values: tuple[str, ...]) -> None:
    assert parse_axis(text) == Axis(text.partition("=")[0].strip(), values)


@pytest.mark.parametrize("text", ["train.lr", "=1,2", "train.lr=", "train.lr=1,,2", "train.lr=1,1"])
def test_an_axis_without_key_or_values_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--over"):
        parse_axis(text)


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    runs = plan_runs([("small", path)], [parse_axis("train.lr=1e-3,2e-3"), parse_axis("model.width=16,32")])
    assert [run.name for run in runs] == [f"lr={lr},width={w}" for lr in ("1e-3", "2e-3") for w in (16, 32)]
    assert [(run.recipe.train.lr, run.recipe.model.width) for run in runs] == [
        (0.001, 16), (0.001, 32), (0.002, 16), (0.002, 32)
    ]  # fmt: skip
    assert runs[1].assignments == ("train.lr=1e-3", "model.width=32")


def test_several_recipes_are_in_the_names(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text().replace("delta", "attention"))
    runs = plan_runs([("small", path), ("other", other)], [parse_axis("seed=0,1")])
    assert [run.name for run in runs] == ["small,seed=0", "small,seed=1", "other,seed=0", "other,seed=1"]


def test_keys_with_one_ending_keep_more_of_their_path(tmp_path: Path) -> None:
    axes = ("model.block.0.type=delta,gla", "data.tokenizer.type=bytes")
    assert names(write_recipe(tmp_path), *axes)[0] == "0.type=delta,tokenizer.type=bytes"


@pytest.mark.parametrize(
    ("axis", "message", "hint"),
    [
        ("train.lrr=1,2", "--over train.lrr=1: unknown key 'train.lrr'", "did you mean 'lr'?"),
        ("trian.lr=1,2", "unknown key 'trian'", "did you mean 'train'?"),
        ("train.lr=1e-3,fast", "--over train.lr=fast: train.lr: input should be a valid number", "recipe schema"),
        ("model.width=16,17", "--over model.width=17: delta: width 17 is not divisible by heads 2", "heads"),
    ],
)
def test_a_bad_value_is_named_with_its_option(tmp_path: Path, axis: str, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        names(write_recipe(tmp_path), axis)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_one_run_under_two_spellings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lr=1e-3 and lr=0.001 are the same run"):
        names(write_recipe(tmp_path), "train.lr=1e-3,0.001")


def test_a_key_is_given_once(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(InputError, match=r"train\.lr is given twice"):
        names(path, "train.lr=1", "train.lr=2")
    with pytest.raises(InputError, match="by --set and by --over"):
        names(path, "train.lr=1,2", overrides=("train.lr=3",))
    with pytest.raises(InputError, match="10,100 runs"):
        names(path, f"seed={','.join(map(str, range(10_100)))}")


def test_names_are_folders_of_their_own(tmp_path: Path) -> None:
    long = "/".join(["x" * 60] * 3)
    folders = names(write_recipe(tmp_path), f'data.sources="{long}/1","{long}/2"')
    assert len(set(folders)) == 2
    assert all("/" not in each and len(each) <= MAX_NAME + 7 for each in folders)
