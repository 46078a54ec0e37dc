"""`synthe data`: a recipe's data or a source by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.huggingface.models import add_tokenizer

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"the text of file {i}\n" * 20)
    return folder


def test_stats_count_a_source(synthe: Run, text: Path) -> None:
    shown = synthe("data", "stats", text, "--set", "data.sequence=16", "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    values = events[-1]["values"]
    assert events[-1]["event"] == "result"
    assert values["documents"] == 40
    assert values["bytes"] == sum(path.stat().st_size for path in text.iterdir())
    assert values["tokens"] == values["bytes"] + 40  # and the end of each document
    table = synthe("data", "stats", text, "--set", "data.sequence=16").stdout
    assert table.splitlines()[0].split() == ["source", "split", "documents", "bytes", "tokens", "bytes/token"]
    assert f"{values['bytes']:,}" in table
    assert "\x1b" not in table
    assert table.splitlines()[-1].startswith("unigram bits per byte")


def test_prepare_prints_the_path_last(synthe: Run, text: Path, cache: Path, recipe: Path) -> None:
    shown = synthe("data", "prepare", recipe, "--set", f"data.sources={text}")
    assert shown.exit_code == 0
    place = Path(shown.stdout.splitlines()[-1])
    assert place.is_dir() and cache in place.parents
    assert "100%" in shown.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [("stdlibb", "no such file or source: 'stdlibb'"), ("none/*.txt", "no file matches: 'none/*.txt'")],
)
def test_a_missing_source(synthe: Run, source: str, message: str) -> None:
    result = synthe("data", "prepare", source)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {message}"


def test_a_corpus_shorter_than_a_sequence(synthe: Run, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words\n")
    result = synthe("data", "prepare", short)
    assert result.exit_code == 2
    assert "is shorter than one sequence" in result.stderr.splitlines()[-2]


def test_an_empty_file(synthe: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = synthe("data", "prepare", tmp_path / "empty.txt")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-2].startswith("error: ")


def test_an_unknown_key_of_data(synthe: Run) -> None:
    result = synthe("data", "stats", "stdlib", "--set", "data.limt=1MB")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --set data.limt: unknown key 'data.limt'\nhint: did you mean 'limit'?\n",
    )


CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer and a chat template."""
    folder = tmp_path / "model"
    add_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|stop|>", "chat_template": CHATML}))
    return folder


def test_preview_shows_what_is_trained_on(synthe: Run, tmp_path: Path, model: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4\x1b[2J"}]},
        {"messages": [{"role": "user", "content": "2 + 2?"}]},
        {"prompt": "2 + 2?", "chosen": "four", "rejected": "five"},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    shown = synthe("data", "preview", path, "-t", model)
    assert shown.exit_code == 0, shown.stderr
    assert "line 1: conversation, " in shown.stdout and "<|im_start|>assistant\n[[4" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "[[four" in shown.stdout and "[[five" in shown.stdout
    assert f"skipped: {path}, line 2: there is no message of the assistant" in shown.stderr.replace("\n", " ")
    assert shown.stderr.splitlines()[-1] == "2 shown, 1 skipped"
    *each, totals = [
        json.loads(line) for line in synthe("data", "preview", path, "-t", model, "--json").stdout.splitlines()
    ]
    assert totals["values"]["shown"] == 2
    (first, *_) = [line["values"] for line in each if line["event"] == "result"]
    (text,) = first["texts"]
    assert "".join(piece for piece, _ in text["pieces"]).startswith("<|im_start|>user")
    assert sum(trained for _, trained in text["pieces"]) == 1 and 0 < text["trained"] < text["tokens"]
    later = synthe("data", "preview", path, "-t", model, "--first", 3, "--rows", 1)
    assert later.stdout.count("preference, ") == 2


def test_preview_of_a_model_without_a_template_is_what_it_is_trained_on(synthe: Run, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"prompt": "2 + 2?", "completion": "4"}')
    shown = synthe("data", "preview", path, "-t", "bytes")
    assert shown.exit_code == 0 and "User: 2 + 2?\nAssistant:[[ 4" in shown.stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chats.txt", "x", "is no table of conversations"),
        ("chats.jsonl", '{"text": "x"}', "has no row that can be trained on"),
        ("chats.jsonl", "{", "line 1: not JSON"),
        ("chats.jsonl", "", "has no row that can be trained on"),
        ("none.jsonl", None, "no such file"),
    ],
)
def test_preview_of_what_is_none(
    synthe: Run, tmp_path: Path, model: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    shown = synthe("data", "preview", tmp_path / name, "-t", model)
    assert shown.exit_code == 2 and message in shown.stderr
    assert shown.stderr.count("error:") == 1


CHATS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(5)]


def test_stats_of_conversations_are_a_table_or_json(synthe: Run, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*CHATS, {"foo": 1}]))
    shown = synthe("data", "stats", path)
    assert shown.exit_code == 0
    assert "6, of which 1 are skipped" in shown.stdout and "prompt, completion 5" in shown.stdout
    assert "characters" in shown.stdout and "the row has foo" in shown.stdout
    values = json.loads(synthe("data", "stats", path, "--json").stdout.splitlines()[-1])["values"]
    assert values["unit"] == "characters" and values["sources"][0]["used"] == 5
    values = json.loads(synthe("data", "stats", path, "-t", "bytes", "--json").stdout.splitlines()[-1])["values"]
    assert values["unit"] == "tokens" and values["sources"][0]["fit"] == {"512": 5, "1024": 5, "2048": 5}


def test_stats_of_a_recipe_of_conversations_read_its_sources(synthe: Run, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    recipe = tmp_path / "chat.yaml"
    data = f"data: {{sources: {path}, validation: {path}}}"
    recipe.write_text(f"model: {{width: 16, blocks: 1, block: [mlp]}}\n{data}\nobjective: sft\n")
    shown = synthe("data", "stats", recipe)
    assert shown.exit_code == 0 and "the prompts of 5 rows" in shown.stdout


def test_stats_of_text_take_a_tokenizer(synthe: Run, text: Path) -> None:
    shown = synthe("data", "stats", text, "--set", "data.sequence=16", "-t", "bytes", "--json")
    assert json.loads(shown.stdout.splitlines()[-1])["values"]["vocabulary"] == 257
