"""`synthe train --lora` and what is done with its adapters: the words on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_cli.options import lora

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own, with a text and the model `runs/small`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"{i} times {i} is {i * i}\n" * 10)
    shutil.copytree(checkpoint, tmp_path / "runs" / "small")


QUICK = ("--data", "texts", "--set", "train.validation_tokens=64", "--set", "runtime.precision=float32")
BEGIN = ("train", "--init", "runs/small", *QUICK)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("rank=8", {"rank": "8"}),
        ("rank=8,targets=delta,mlp,alpha=16", {"rank": "8", "targets": ["delta", "mlp"], "alpha": "16"}),
        ("targets=blocks.0.*, out , rslora=true", {"targets": ["blocks.0.*", "out"], "rslora": "true"}),
    ],
)
def test_the_lora_option_is_parsed(text: str, keys: dict[str, Any]) -> None:
    assert lora(text) == f"train.lora={json.dumps(keys)}"


def test_an_adapter_is_trained_and_used_to_generate(synthe: Run) -> None:
    done = synthe(*BEGIN, "--lora", "rank=4,targets=attention,mlp,dropout=0.1", "--out", "runs/code")
    assert (done.exit_code, done.stdout) == (0, "runs/code\n"), done.stderr
    assert "the adapter's, are trained" in done.stderr and "None" not in done.stderr
    saved = json.loads(synthe("recipe", "show", "runs/code", "--json").stdout)["recipe"]["train"]["lora"]
    expected = {"rank": 4, "alpha": None, "dropout": 0.1, "rslora": False, "targets": ["attention", "mlp"]}
    assert saved == expected | {"quantize": None, "double_quant": False}
    written = synthe("generate", "runs/code", "-p", "1", "-n", 8, "--seed", 1)
    assert (written.exit_code, written.stderr) == (0, "") and written.stdout.startswith("1")
    named = synthe("generate", "runs/small", "--adapter", "runs/code", "-p", "1", "-n", 8, "--seed", 1)
    assert named.stdout == written.stdout
    Path("runs/small").rename("moved")
    gone = synthe("generate", "runs/code", "-p", "1")
    assert gone.exit_code == 2 and gone.stdout == "" and len(gone.stderr.splitlines()) == 2
    assert "runs/small" in gone.stderr and "--adapter" in gone.stderr
    assert (
        synthe("generate", "moved", "--adapter", "runs/code", "-p", "1", "-n", 8, "--seed", 1).stdout == written.stdout
    )
    assert synthe("generate", "runs/code", "--adapter", "moved", "-n", 1).exit_code == 2
    again = synthe("train", "runs/code", "--resume", "--set", "train.budget=6steps")
    assert again.exit_code == 2 and "is not there" in again.stderr


def test_a_model_is_trained_further_with_its_own_recipe(synthe: Run) -> None:
    done = synthe(*BEGIN, "--set", "train.budget=2steps")
    assert (done.exit_code, done.stdout) == (0, "runs/small-2\n"), done.stderr
    saved = json.loads(synthe("recipe", "show", "runs/small-2", "--json").stdout)["recipe"]
    assert saved["model"]["width"] == 32 and saved["train"]["lora"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["no recipe given", "--init"]),
        (["train", "--lora", "rank=2", "--data", "texts"], ["no recipe given"]),
        (["train", "small.yaml", "--lora", "rank=2"], ["needs a model to adapt", "--init"]),
        ([*BEGIN, "--lora", "8"], ["--lora 8: expected key=value", "rank=16"]),
        ([*BEGIN, "--lora", "rank=0"], ["train.lora.rank", "greater than or equal to 1"]),
        ([*BEGIN, "--lora", "rank=x"], ["train.lora.rank"]),
        ([*BEGIN, "--lora", "rnk=8"], ["unknown key 'train.lora.rnk'", "did you mean 'rank'"]),
        ([*BEGIN, "--lora", "targets=mlpp"], ["unknown target 'mlpp'", "did you mean 'mlp'"]),
        ([*BEGIN, "--lora", "rank=4,8"], ["train.lora.rank"]),
        ([*BEGIN, "--lora", "rank=4", "--set", "model.width=64"], ["model.width: 32 -> 64"]),
        (["train", "--init", "runs/none", "--lora", "rank=4"], ["no such checkpoint: runs/none"]),
    ],
)
def test_invalid_arguments_are_one_line(synthe: Run, recipe: Path, arguments: list[str], words: list[str]) -> None:
    done = synthe(*arguments)
    assert done.exit_code == 2 and done.stdout == "", done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(lines) == 2 and all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr and not list(Path("runs").glob("small-*"))
