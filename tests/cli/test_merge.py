"""`synthe merge` from the outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.tensor_file import TensorFile
from tests.evaluation.models import choices
from tests.merging.models import adapter, checkpoint, family, llama

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    for name, seed in (("base", None), ("a", 1), ("b", 2)):
        checkpoint(Path("runs") / name, seed)
    return tmp_path


def test_it_prints_the_path_and_nothing_else(synthe: Run) -> None:
    done = synthe(
        "merge", "ties", "runs/base", "runs/a", "runs/b", "--density", 0.2, "--lambda", 0.8, "--weights", "1,0.5"
    )
    assert (done.exit_code, done.stdout) == (0, "runs/merge-ties\n"), done.stderr
    assert "ties of runs/a, runs/b on runs/base: " in done.stderr and "bytes" in done.stderr
    config = json.loads(Path("runs/merge-ties/manifest.json").read_text())["merge"]["config"]
    assert config["parameters"] == {"density": 0.2, "lambda": 0.8} and config["base_model"] == "runs/base"
    assert [each.get("parameters") for each in config["models"]] == [{"weight": 1.0}, {"weight": 0.5}]
    assert synthe("merge", "linear", "runs/a", "runs/b", "--normalize=false").stdout == "runs/merge-linear\n"
    assert synthe("merge", "linear", "runs/a", "runs/b").stdout == "runs/merge-linear-2\n"
    assert synthe("generate", "runs/merge-ties", "-p", "a", "-n", 3, "--device", "cpu").exit_code == 0


def test_the_base_may_be_named(synthe: Run) -> None:
    one = synthe("merge", "ties", "runs/base", "runs/a", "runs/b", "-o", "one")
    other = synthe("merge", "ties", "--base", "runs/base", "runs/a", "runs/b", "-o", "other")
    assert one.exit_code == other.exit_code == 0
    assert Path("one/model.safetensors").read_bytes() == Path("other/model.safetensors").read_bytes()


def test_negative_weights_are_values(synthe: Run) -> None:
    done = synthe("merge", "task_arithmetic", "runs/base", "runs/a", "runs/b", "--weights=-1,1")
    assert done.exit_code == 0, done.stderr
    assert synthe("merge", "task_arithmetic", "runs/base", "runs/a", "runs/b", "--weights", "-1,1").exit_code == 0


def test_a_recipe_and_chaining(synthe: Run, here: Path) -> None:
    Path("m.yaml").write_text(
        "name: mixed\nmerge_method: linear\nmodels:\n- {model: runs/a}\n- {model: runs/b, parameters: {weight: 3}}\n"
    )
    done = synthe("merge", "run", "m.yaml", "--json")
    assert done.exit_code == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "result" and last["path"] == "runs/mixed" and last["values"]["method"] == "linear"
    assert synthe("generate", "-", "-n", 2, "--device", "cpu", stdin=done.stdout).exit_code == 0


def test_scores_are_shown_with_those_of_the_parents(synthe: Run) -> None:
    for name in ("one.txt", "two.txt"):
        Path(name).write_text("all the world is a stage\n" * 40)
    done = synthe("merge", "linear", "runs/a", "runs/b", "--eval", "one.txt,two.txt")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["bits", "per", "byte", "one.txt", "two.txt", "mean"]
    assert [line.split()[0] for line in lines[1:4]] == ["runs/a", "runs/b", "runs/merge-linear"]
    assert lines[-1] == "runs/merge-linear"
    assert all(6 < float(line.split()[1]) < 11 for line in lines[1:4])
    options = ["--eval", f"one.txt,{choices(Path('tasks'))}", "--limit", 2]
    done = synthe("merge", "linear", "runs/a", "runs/b", *options, "-o", "runs/scored")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("bits per byte") and done.stdout.splitlines()[-1] == "runs/scored"
    row, *_ = [line.split() for line in done.stdout.splitlines() if line.startswith("rivers")]
    assert row[:3] == ["rivers", "acc", "↑"] and len([cell for cell in row if cell.lstrip("*")[0].isdigit()]) >= 3
    shown = synthe("merge", "linear", "runs/a", "runs/b", "--eval", "nowhere.txt")
    assert shown.exit_code == 2 and not Path("runs/merge-linear-2").exists()


def test_adapters(synthe: Run) -> None:
    for name, tuned in (("la", "runs/a"), ("lb", "runs/b")):
        done = synthe("merge", "extract-lora", "runs/base", tuned, "--rank", 4, "-o", name)
        assert (done.exit_code, done.stdout) == (0, f"{name}\n"), done.stderr
        assert "--with-rest includes them" in done.stderr
    merged = synthe("merge", "ties", "la", "lb", "--rank", 3, "-o", "merged")
    assert merged.exit_code == 0 and json.loads(Path("merged/adapter_config.json").read_text())["r"] == 3
    into = synthe("merge", "ties", "--base", "runs/base", "la", "lb", "-o", "into")
    assert into.exit_code == 0 and Checkpoint.open("into").model() is not None
    alone = synthe("merge", "linear", "runs/base+la", "runs/base+lb", "-o", "joined")
    assert alone.exit_code == 0, alone.stderr


def test_other_weights_than_an_adapter_was_trained_on_are_reported(synthe: Run) -> None:
    for name, base, tuned in (("la", "base", "a"), ("lb", "base", "b"), ("other", "a", "b")):
        done = synthe("merge", "extract-lora", f"runs/{base}", f"runs/{tuned}", "--rank", 4, "-o", name)
        assert done.exit_code == 0, done.stderr
    for message, command in (
        ("la was trained on other weights than those of runs/a", ["--base", "runs/a", "la", "-o", "into"]),
        ("other was trained on other weights than those of runs/base", ["runs/base+la", "runs/base+other", "-o", "j"]),
        ("la and other are adapters of different weights", ["la", "other", "-o", "both"]),
        ("", ["la", "lb", "-o", "twice"]),
    ):
        done = synthe("merge", "linear", *command)
        assert done.exit_code == 0 and message in done.stderr, done.stderr
        assert "weights" in done.stderr or not message
    recorded = [
        TensorFile(Path(name) / "adapter_model.safetensors").metadata.get("base_sha256")
        for name in ("la", "twice", "both")
    ]
    assert recorded == [Checkpoint.open("runs/base").digest] * 2 + [None]


def test_diff_and_list(synthe: Run) -> None:
    done = synthe("merge", "diff", "runs/a", "runs/b", "--base", "runs/base")
    assert done.exit_code == 0 and done.stdout.splitlines()[0].endswith(
        "cosine and signs are of the differences from the base"
    )
    values = json.loads(synthe("merge", "diff", "runs/a", "runs/b", "--json").stdout.splitlines()[-1])["values"]
    assert values["total"]["distance"] > 0 and len(values["tensors"]) == 14
    listed = synthe("merge", "list")
    assert "--density" in listed.stdout and "arXiv:2306.01708" in listed.stdout
    methods = json.loads(synthe("merge", "list", "--json").stdout)["values"]["methods"]
    assert {"ties", "linear", "sce", "passthrough"} <= {each["name"] for each in methods}
    helped = synthe("merge", "ties", "--help")
    assert helped.exit_code == 0 and "  --density " in helped.stdout and "synthe merge ties" in helped.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ties", "runs/base", "runs/a", "--densty", "0.2"], "did you mean '--density'?"),
        (["ties", "runs/base", "runs/a", "--density", "0"], "density 0.0: input should be greater than 0"),
        (["ties", "runs/base", "runs/a", "--density"], "--density needs a value"),
        (["ties", "runs/base", "runs/a", "runs/b", "--weights", "1,2,3"], "--weight has 3 values for 2 models"),
        (["slerp", "runs/a", "runs/b", "--t", "0.1,0.2"], "one value is for all models"),
        (["tise", "runs/a"], "did you mean 'ties'?"),
        (["median", "runs/a"], "unknown merge method 'median'"),
        (["linear", "runs/a", "runs/c"], "no such model: runs/c"),
        (["linear", "runs/a", "runs/a"], "runs/a is named twice"),
        (["linear", "runs/a", "runs/b", "--dtype", "int8"], "unknown value of --dtype 'int8'"),
        (["linear", "runs/a", "runs/b", "--as", "adaptor"], "did you mean 'adapter'?"),
        (["linear", "runs/a", "runs/b", "--shard", "5XB"], "--shard: '5XB' is not a size"),
        (["linear", "runs/a", "runs/b", "--shard", "0GB"], "--shard 0GB: at least 1000 bytes"),
        (["linear", "runs/a", "runs/b", "--shard", "5"], "--shard 5: at least 1000 bytes"),
        (["linear", "runs/a", "runs/b", "--out", "runs/a"], "runs/a is not empty"),
        (["run", "nothing.yaml"], "no such file: nothing.yaml"),
        (["diff", "runs/a", "runs/base/recipe.yaml"], "is no model that can be merged"),
        (["extract-lora", "runs/a", "runs/a"], "is the same as"),
    ],
)
def test_bad_input_is_one_line(synthe: Run, arguments: list[str], message: str) -> None:
    before = sorted(Path("runs").iterdir())
    done = synthe("merge", *arguments)
    assert done.exit_code == 2 and message in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("compare ")]
    assert len(lines) == (2 if "hint: " in done.stderr else 1) and "Traceback" not in done.stderr
    assert sorted(Path("runs").iterdir()) == before


@pytest.mark.parametrize("option,methods", [("--weights", "ties"), ("--density", "ties"), ("--t", "slerp")])
def test_an_option_of_other_methods_names_them(synthe: Run, option: str, methods: str) -> None:
    done = synthe("merge", "model_stock", "runs/base", "runs/a", "runs/b", option, 2)
    assert done.exit_code == 2 and f"model_stock has no {option}" in done.stderr
    assert "methods that have it: " in done.stderr and methods in done.stderr and "did you mean" not in done.stderr
    assert "did you mean" in synthe("merge", "ties", "runs/a", "runs/b", "--densty", 2).stderr
    assert "METHOD'" not in synthe("merge", "median", "runs/a", "runs/b").stderr  # a placeholder of help, no method


def test_a_folder_without_write_permission(synthe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    done = synthe("merge", "linear", "runs/a", "runs/b", "-o", "locked/out")
    assert done.exit_code == 1 and "locked/out could not be written: Permission denied" in done.stderr


def test_hugging_face_folders(synthe: Run, here: Path) -> None:
    base, models = family(here / "hf", 2)
    done = synthe("merge", "dare_ties", base, *models, "--density", 0.5, "--dtype", "bfloat16", "-o", "hf/out")
    assert done.exit_code == 0, done.stderr
    assert json.loads(Path("hf/out/config.json").read_text())["dtype"] == "bfloat16"
    adapter(here / "lora", str(base), llama(), ["model.layers.0.mlp.up_proj"])
    assert synthe("merge", "linear", "lora", "--as", "model", "-o", "hf/applied").exit_code == 0
    shown = synthe("merge", "linear", *models, "--eval", "runs/base/recipe.yaml")
    assert shown.exit_code == 2 and "is no checkpoint of synthe" in shown.stderr
