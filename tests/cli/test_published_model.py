"""A model folder that transformers runs, through the verbs: a recurrent hybrid that our learners do not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.huggingface.backend_families import family

pytest.importorskip("transformers")

Run = Callable[..., Any]
GREEDY = ("--temperature", "0", "--tokens", "6", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("models") / "zamba", "Zamba2")


def lines(shown: Any) -> list[dict[str, Any]]:
    assert shown.exit_code == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_generate_with_a_session(synthe: Run, folder: Path, tmp_path: Path) -> None:
    session = tmp_path / "s"
    first = synthe("generate", folder, "--prompt", "the sea", *GREEDY, "--state-out", session)
    whole = lines(synthe("generate", folder, "--prompt", "the sea", "--temperature", "0", "--tokens", "12", "--json"))
    rest = lines(synthe("generate", folder, "--prompt", "", *GREEDY, "--state-in", session))
    assert lines(first)[-1]["text"] + rest[-1]["text"] == whole[-1]["text"]
    assert first.stderr == ""


def test_it_is_packed_trained_and_merged(synthe: Run, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("the sea the sea times is times " * 60)
    small = ("--data", text, "--set", "data.sequence=16", "--set", "train.budget=2steps", "--set", "train.batch=2")
    expected = lines(synthe("generate", folder, "--prompt", "the sea", *GREEDY))[-1]["text"]
    packed = tmp_path / "z.synapse"
    assert synthe("pack", folder, "-o", packed).exit_code == 0
    assert lines(synthe("generate", packed, "--prompt", "the sea", *GREEDY))[-1]["text"] == expected
    for name, options in (("whole", ()), ("adapter", ("--lora", "rank=2"))):
        shown = synthe("train", "--init", folder, *small, *options, "--out", tmp_path / name)
        assert shown.exit_code == 0, shown.stderr
        assert synthe("generate", tmp_path / name, "--prompt", "the sea", *GREEDY).exit_code == 0
    adapted = synthe("generate", folder, "--adapter", tmp_path / "adapter", "--prompt", "the sea", *GREEDY)
    assert adapted.exit_code == 0, adapted.stderr
    merged = synthe("merge", "linear", tmp_path / "whole", packed, "--out", tmp_path / "merged")
    assert merged.exit_code == 0, merged.stderr
    assert synthe("generate", tmp_path / "merged", "--prompt", "the sea", *GREEDY).exit_code == 0


def test_its_memory_is_estimated(synthe: Run, folder: Path, tmp_path: Path) -> None:
    output = json.loads(synthe("profile-vram", folder, "--batch", "2", "--json").stdout)
    assert output["training"]["parts"]["activations"] > output["training"]["parts"]["parameters"] > 0
    assert output["serving"]["parts"]["state"] == 2 * output["state_bytes"] > 0
    shown = synthe("profile-vram", folder, "--html", tmp_path / "page.html")
    assert shown.exit_code == 2 and "Zamba2ForCausalLM" in shown.stderr


def test_perplexity_is_measured(synthe: Run, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sea the sea times is times " * 20)
    shown = synthe("eval", "perplexity", folder, "--data", text, "--context", "16", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert '"trained"' in shown.stdout


@pytest.mark.parametrize("verb", ["introspect", "import", "export"])
def test_what_needs_learners_refuses_it_in_one_line(synthe: Run, folder: Path, tmp_path: Path, verb: str) -> None:
    shown = {
        "introspect": lambda: synthe("introspect", folder, "--text", "the sea"),
        "import": lambda: synthe("import", "hf", folder, "--out", tmp_path / "out"),
        "export": lambda: synthe("export", "hf", folder, "--out", tmp_path / "out"),
    }[verb]()
    error, hint = shown.stderr.strip().splitlines()
    assert shown.exit_code == 2 and "Zamba2ForCausalLM" in error and hint.startswith("hint: ")
    assert not (tmp_path / "out").exists()
