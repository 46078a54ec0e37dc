"""`synthe import hf`: from somebody else's folder to a checkpoint that the other verbs take."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.models import add_tokenizer, transformer
from tests.paths import ROOT
from tests.processes import run_program

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published model whose vocabulary is padded, in a working folder with a text to learn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    add_tokenizer(Path("models/Little-1"))
    transformer(Path("models/Little-1"), layers=1, vocab_size=300, eos_token_id=1, bos_token_id=0)
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"{i} times {i} is {i * i}\n" * 10)
    return Path("models/Little-1")


def test_it_prints_the_checkpoint_and_nothing_else(synthe: Run, folder: Path) -> None:
    done = synthe("import", "hf", folder)
    assert (done.exit_code, done.stdout) == (0, "runs/Little-1\n"), done.stderr
    for part in ("LlamaForCausalLM: ", "F32", "import  100%", "saved  step 0  runs/Little-1", "parameters"):
        assert part in done.stderr
    again = synthe("import", "hf", folder)
    assert again.stdout == "runs/Little-1-2\n"
    named = synthe("import", "hf", folder, "--out", "elsewhere", "--name", "mine")
    assert named.stdout == "elsewhere\n" and Checkpoint.open("elsewhere").recipe.name == "mine"


def test_json_lines_end_in_the_result(synthe: Run, folder: Path) -> None:
    done = synthe("import", "hf", folder, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert [event["event"] for event in events] == ["notice", "progress", "progress", "saved", "result"]
    assert events[-1]["path"] == "runs/Little-1"
    assert events[-1]["values"]["architecture"] == "LlamaForCausalLM"
    assert synthe("generate", "-", "-p", "the", "-n", 2, stdin=done.stdout).exit_code == 0


def test_text_is_written_with_it(synthe: Run, folder: Path) -> None:
    path = synthe("import", "hf", folder).stdout
    done = synthe("generate", path.strip(), "--prompt", "the sea", "-n", 5)
    assert done.exit_code == 0 and done.stdout.startswith("the sea"), done.stderr
    assert synthe("generate", path.strip(), "-n", 5).exit_code == 0
    shown = synthe("recipe", "show", path.strip())
    assert shown.exit_code == 0, shown.stderr


def test_training_continues_from_it_and_resumes(synthe: Run, folder: Path) -> None:
    synthe("import", "hf", folder, "--out", "ours")
    quick = ("--set", "train.batch=2", "--set", "train.validation_tokens=64", "--set", "runtime.precision=float32")
    quick = (*quick, "--set", "data.sequence=32", "--set", "train.budget=2steps", "--data", "texts")
    done = synthe("train", "ours", "--init", "ours", "--out", "tuned", *quick)
    assert (done.exit_code, done.stdout) == (0, "tuned\n"), done.stderr
    before, after = Checkpoint.open("ours"), Checkpoint.open("tuned")
    assert after.vocab == before.vocab == 300 > after.tokenizer().vocab_size
    assert after.manifest.parents == ["ours"]
    moved = (after.tensors["head.weight"] - before.tensors["head.weight"]).abs().max()
    assert 0 < moved < 1e-3  # the recipe's rate is one for learned weights
    done = synthe("train", "tuned", "--resume", "--set", "train.budget=4steps")
    assert done.exit_code == 0, done.stderr
    assert Checkpoint.open("tuned", latest=True).manifest.step == 4


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("models/Little-2",), "no such folder: models/Little-2", "fetch the model first"),
        (("texts",), "texts has no config.json", "safetensors"),
        (("models/Little-1", "--out", "texts"), "texts is not empty", "choose another --out"),
        (("models/Little-1", "--name", "a/b"), "name: ", ""),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    synthe: Run, folder: Path, arguments: tuple[str, ...], message: str, hint: str
) -> None:
    done = synthe("import", "hf", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr and hint in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_architectures_and_formats_are_named(synthe: Run, folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["Lama2ForCausalLM"]}))
    done = synthe("import", "hf", folder)
    assert done.exit_code == 2 and "did you mean 'LlamaForCausalLM'?" in done.stderr
    done = synthe("import", "hg", folder)
    assert done.exit_code == 2 and "did you mean 'hf'?" in done.stderr
    assert not Path("runs").exists()


def test_help_shows_examples(synthe: Run) -> None:
    for arguments in (("import",), ("import", "--help")):
        assert "hf" in synthe(*arguments).stdout
    shown = synthe("import", "hf", "--help").stdout
    assert "synthe import hf models/Qwen3-0.6B" in shown and "ORG/NAME" in shown


def test_it_needs_neither_transformers_nor_the_network(folder: Path) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules['transformers'] = None\n"
        "from synthe_cli.app import app\n"
        "app(['import', 'hf', 'models/Little-1'])\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    done = run_program(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "runs/Little-1\n"), done.stderr
