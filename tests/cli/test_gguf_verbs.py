"""A real instruct model in a GGUF file, through every verb: SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.interop.load import load_model
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.interop.gguf.test_smollm2 import FILE
from tests.paths import SHARED

Run = Callable[..., Any]
HUB = SHARED / "data" / "hub"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILE.is_file(), reason="needs the shared models")]
GREEDY = ("-t", 0, "--json")


@pytest.fixture
def run(synthe: Run) -> Callable[..., list[dict[str, Any]]]:
    """Runs a command, which must succeed; its JSON lines."""

    def run(*arguments: object, stdin: str | None = None) -> list[dict[str, Any]]:
        done = synthe(*arguments, stdin=stdin)
        assert done.exit_code == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def continued(run: Any, model: Path, *more: object) -> str:
    (row,) = run("generate", model, "-p", "The capital of France is", "-n", 6, *GREEDY, *more)
    return str(row["text"])


def test_reading_and_answering(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Paris" in continued(run, FILE)
    question = "What is the capital of France?"
    chat = ("chat", FILE, "--sessions", tmp_path / "chats", *GREEDY, "-n", 20)
    (reply,) = run(*chat, "--weights", "float32", stdin=question + "\n")
    assert reply["text"] == "The capital of France is Paris." and reply["finish_reason"] == "stop"
    (rounded,) = run(*chat, stdin=question + "\n")  # by integers: "L'Étoile, la", which llama.cpp says too
    assert rounded["text"] and rounded["prompt_tokens"] == reply["prompt_tokens"]
    with AsyncEngine([load_model(FILE, "smol")]) as engine, Server(engine, Settings()) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        message: Any = {"role": "user", "content": question}
        answer = client.chat.completions.create(model="smol", messages=[message], temperature=0, max_tokens=20)
        assert answer.choices[0].message.content == reply["text"]
        assert answer.usage is not None and answer.usage.prompt_tokens == reply["prompt_tokens"]
        (card,) = client.models.list().data
        assert card.model_extra is not None and card.model_extra["max_model_len"] <= 8192
    report = run("introspect", FILE, "--text", "The capital of France is", "--layers", "0-1", "--json")
    assert report
    (estimate,) = run("profile-vram", FILE, "--serve", "--context", 2048, "--json")[:1]
    assert estimate["state_bytes"] > 0
    if HUB.is_dir():
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        monkeypatch.chdir(HUB)
        scores = run("eval", "lm", FILE, "--tasks", "arc_easy", "--limit", 20, "--json")
        assert '"acc' in json.dumps(scores)


def test_changing_and_moving(run: Any, synthe: Run, tmp_path: Path) -> None:
    text = tmp_path / "notes.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"Note {i}: the capital of France is Lyon."}) + "\n" for i in range(200))
    )
    done = synthe(
        "train", "--init", FILE, "--data", text, "--lora", "rank=8", "--out", tmp_path / "notes",
        "--set", "train.budget=20steps", "--set", "train.batch=2", "--set", "train.lr=1e-3",
        "--set", "data.sequence=64",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    tuned = continued(run, FILE, "--adapter", tmp_path / "notes")
    assert "Lyon" in tuned and "Paris" in continued(run, FILE)
    run("import", "gguf", FILE, "--out", tmp_path / "base")
    assert continued(run, tmp_path / "base", "--adapter", tmp_path / "notes") == tuned
    recipe = tmp_path / "merge.yaml"
    adapter = max((tmp_path / "notes" / "checkpoints").glob("step-*"))
    merged = f"{tmp_path / 'base'}+{adapter}"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {merged}, parameters: {{weight: 1.0}}}}]\n")
    run("merge", "run", recipe, "--out", tmp_path / "merged", "--shard", "200MB")
    assert continued(run, tmp_path / "merged") == tuned
    run("pack", tmp_path / "merged", "--out", tmp_path / "smol.synapse")
    assert continued(run, tmp_path / "smol.synapse") == tuned
    run("unpack", tmp_path / "smol.synapse", "--out", tmp_path / "unpacked")
    assert continued(run, tmp_path / "unpacked") == tuned
    run("export", "gguf", tmp_path / "merged", "--quantize", "f16", "--out", tmp_path / "back.gguf")
    assert continued(run, tmp_path / "back.gguf") == tuned
    run("export", "hf", tmp_path / "merged", "--out", tmp_path / "hf")
    assert continued(run, tmp_path / "hf") == tuned
    run("import", "gguf", tmp_path / "back.gguf", "--out", tmp_path / "copy")
    assert continued(run, tmp_path / "copy") == tuned
