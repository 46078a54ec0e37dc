"""The limit of a published model is that of every verb, also of what is trained or merged from it; and so is its
identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.evaluation.opened_model import open_model
from synthe_core.interop.importer import import_hf
from synthe_core.interop.load import load_model
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.models import add_tokenizer, transformer

Run = Callable[..., Any]
LIMIT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    add_tokenizer(path / "hf")
    transformer(path / "hf", layers=1, vocab_size=280, max_position_embeddings=LIMIT, eos_token_id=None)
    *_, _ = import_hf(path / "hf", out=path / "copy")
    return path


@pytest.mark.parametrize("name", ["hf", "copy"])
def test_generate_and_chat_stop_there(synthe: Run, folder: Path, name: str) -> None:
    done = synthe("generate", folder / name, "-p", "the sea", "-n", 200, "--json", "--seed", 1)
    assert done.exit_code == 0, done.stderr
    tokenizer = Checkpoint.open(folder / "copy").tokenizer()
    assert 20 < len(tokenizer.encode(json.loads(done.stdout)["text"])) <= 4 * LIMIT
    done = synthe("chat", folder / name, "--json", "-t", 0, stdin="hi\nhello\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0]["finish_reason"] == "length"
    assert answers[0]["tokens"] + answers[0]["prompt_tokens"] == LIMIT
    assert done.exit_code == 2 and f"more than the model's {LIMIT}" in done.stderr  # the second has no room


def test_its_training_sequences_and_evaluation(folder: Path) -> None:
    opened = open_model(folder / "copy", "cpu")
    assert (opened.trained, opened.limit) == (LIMIT, LIMIT)
    assert Checkpoint.open(folder / "copy").recipe.data.sequence == LIMIT
    assert load_model(folder / "copy").max_length == load_model(folder / "hf").max_length == LIMIT


def test_what_is_made_of_it_has_its_limit(synthe: Run, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the sea times is {i} and so on\n" for i in range(400)))
    start = ("train", "--init", folder / "copy", "--data", text, "--set", "train.budget=2steps")
    assert synthe(*start, "--out", tmp_path / "tuned").exit_code == 0
    assert synthe(*start, "--lora", "rank=2", "--out", tmp_path / "adapter").exit_code == 0
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(f"merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: {folder / 'copy'}}}, "
                      f"{{model: {tmp_path / 'tuned'}}}]\n")  # fmt: skip
    done = synthe("merge", "run", recipe, "--out", tmp_path / "merged")
    assert done.exit_code == 0, done.stderr
    assert synthe("pack", folder / "copy", "--out", tmp_path / "packed.synapse").exit_code == 0
    for name in ("tuned", "adapter", "merged", "packed.synapse"):
        assert load_model(tmp_path / name).max_length == LIMIT


def test_sessions_and_adapters_of_a_published_model_are_those_of_its_copy(
    synthe: Run, folder: Path, tmp_path: Path
) -> None:
    def generated(name: str, *arguments: object) -> str:
        done = synthe("generate", folder / name, "-p", " times", "-n", 5, "-t", 0, "--json", *arguments)
        assert done.exit_code == 0, done.stderr
        return str(json.loads(done.stdout)["text"])

    for name in ("hf", "copy"):
        saved = tmp_path / name
        assert synthe("generate", folder / name, "-p", "the sea", "-n", 3, "--state-out", saved).exit_code == 0
        assert generated("hf", "--state-in", saved) == generated("copy", "--state-in", saved)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the sea times is {i} and so on\n" for i in range(400)))
    for name in ("hf", "copy"):
        adapter = tmp_path / f"adapter-{name}"
        start = ("train", "--init", folder / name, "--data", text, "--set", "train.budget=2steps", "--lora", "rank=2")
        assert synthe(*start, "--out", adapter).exit_code == 0
        assert generated("hf", "--adapter", adapter) == generated("copy", "--adapter", adapter)
