"""`--generation-config`: what the model's generation_config.json sets, and how to ignore it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import saved

Run = Callable[..., Any]
SHOWN = "generation_config.json: temperature 0, max_tokens 5\n"


def model(folder: Path, **sampling: Any) -> Path:
    tokenizer = ByteTokenizer()
    tokenizer.sampling = sampling
    tokenizer.chat_template = "{{ messages[0].content }}"
    return saved(folder, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model") / "greedy", do_sample=False, max_new_tokens=5)


def text(done: Any) -> str:
    assert done.exit_code == 0, done.stderr
    return str(json.loads(done.stdout)["text"])


def test_generate(synthe: Run, greedy: Path) -> None:
    arguments = ("generate", greedy, "-p", "the sea", "--json")
    done = synthe(*arguments, "--seed", 1)
    assert done.stderr == SHOWN
    explicit = synthe(*arguments, "--generation-config", "none", "-t", 0, "-n", 5)
    assert explicit.stderr == "" and text(done) == text(explicit)
    assert text(synthe(*arguments, "-n", 9)).startswith(text(done)) and text(synthe(*arguments, "-n", 9)) != text(done)
    sampled = {text(synthe(*arguments, "-t", 1, "--seed", seed)) for seed in range(3)}
    assert sampled != {text(done)}


def test_chat(synthe: Run, greedy: Path, tmp_path: Path) -> None:
    arguments = ("chat", greedy, "--json", "--sessions", tmp_path)
    done = synthe(*arguments, stdin="hello\n")
    (row,) = (json.loads(line) for line in done.stdout.splitlines())
    assert SHOWN in done.stderr
    explicit = synthe(*arguments, "--generation-config", "none", "-t", 0, "-n", 5, stdin="hello\n")
    assert SHOWN not in explicit.stderr
    assert json.loads(explicit.stdout)["text"] == row["text"] and row["tokens"] <= 5


def test_it_is_carried_by_a_checkpoint(greedy: Path) -> None:
    assert Checkpoint.open(greedy).tokenizer().sampling == {"do_sample": False, "max_new_tokens": 5}


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_another_value_is_refused(synthe: Run, greedy: Path, command: str) -> None:
    done = synthe(command, greedy, "--generation-config", "maybe")
    assert done.exit_code == 2 and "expected auto or none" in done.stderr


def test_an_invalid_file_is_named_and_can_be_ignored(synthe: Run, tmp_path: Path) -> None:
    path = model(tmp_path / "odd", temperature=-1)
    done = synthe("generate", path, "-p", "x", "-n", 1)
    assert done.exit_code == 2 and "generation_config.json has temperature '-1'" in done.stderr
    assert "--generation-config none" in done.stderr
    assert synthe("generate", path, "-p", "x", "-n", 1, "--generation-config", "none").exit_code == 0
