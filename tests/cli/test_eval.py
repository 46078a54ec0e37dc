"""`synthe eval` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 20)
    return path


def test_a_table_and_a_picture(synthe, checkpoint, text, tmp_path):
    plot = tmp_path / "c.svg"
    done = synthe("eval", "confidence", checkpoint, "--data", text, "--device", "cpu", "--plot", plot)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(plot) and plot.read_text().startswith("<svg")
    assert lines[0].startswith("800 held-out tokens, ")
    assert lines[2].split() == ["score", "ECE", "AUROC", "AURC", "errors", "in", "top", "half"]
    assert lines[3].startswith("max-softmax")
    assert "no calibrated head" in done.stderr


def test_json_lines(synthe, checkpoint, text):
    done = synthe("eval", "confidence", checkpoint, "--data", text, "--device", "cpu", "--tokens", 64, "--json")
    assert done.exit_code == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "result" and last["values"]["tokens"] == 64
    (score,) = last["values"]["scores"]
    assert score["score"] == "max-softmax" and sum(each["answers"] for each in score["bins"]) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "confidense", "x"], "did you mean 'confidence'?"),
        (["eval", "confidence", "runs/none"], "no such checkpoint"),
    ],
)
def test_bad_input(synthe, arguments, message):
    done = synthe(*arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_help(synthe):
    done = synthe("eval", "confidence", "--help")
    assert done.exit_code == 0 and "synthe eval confidence runs/tiny" in done.stdout


def test_chat_answers_are_judged_and_stored(synthe, checkpoint, tmp_path):
    questions, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["a", "b"]}\n')
    command = ("eval", "chat", checkpoint, "--questions", questions, "--judge", checkpoint, "--max-tokens", 4)
    done = synthe(*command, "--out", out)
    assert done.exit_code == 0 and "questions: 1, judged by" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == str(out) and len(out.read_text().splitlines()) == 2
    again = synthe(*command, "--json")
    assert json.loads(again.stdout.splitlines()[-1])["values"]["questions"] == 1, again.stderr
    bad = synthe("eval", "chat", checkpoint, "--questions", tmp_path / "none", "--judge", checkpoint)
    assert bad.exit_code == 2 and "no such file" in bad.stderr


ENCODER = """\
name: encoder
model:
  width: 16
  blocks: 1
  patch: {stride: 2, taps: 2}
  head: {type: classify, classes: 10}
  block: [spectral, {type: bidirectional_attention, heads: 2}, {type: delta_memory, heads: 1}]
data: {sources: "listops:examples=60,shortest=20,longest=40", labels: path, sequence: 64, validation: 0.2}
train: {budget: 2steps, batch: 8}
"""


def test_a_recipe_of_classes_from_training_to_its_figures(synthe, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "encoder.yaml").write_text(ENCODER)
    run, plot = tmp_path / "run", tmp_path / "c.html"
    trained = synthe("train", tmp_path / "encoder.yaml", "--out", run, "--set", "runtime.device=cpu")
    assert trained.exit_code == 0, trained.stderr
    done = synthe("eval", "classify", run, "--device", "cpu", "--plot", plot)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("12 texts, ") and "; chance " in lines[0] and "macro F1" in lines[1]
    assert lines[3].split() == ["class", "texts", "given", "precision", "recall", "F1"]
    assert lines[-12].split()[0] == "confusions" and lines[-1] == str(plot)
    assert plot.read_text().count("<tr>") == 11
    other = "listops:examples=5,shortest=20,longest=40,seed=1"
    again = synthe("eval", "classify", run, "--data", other, "--device", "cpu", "--json")
    values = json.loads(again.stdout.splitlines()[-1])["values"]
    assert values["texts"] == 5 and len(values["confusion"]) == 10 and values["low"] <= values["accuracy"]
    seen = synthe("introspect", run, "--text", "x29n47]0]", "--device", "cpu", "--html", tmp_path / "seen.html")
    assert seen.exit_code == 0, seen.stderr
    shown = synthe("introspect", run, "--text", "x29n47]0]", "--device", "cpu")
    assert "; class " in shown.stdout and "pool" in shown.stdout and (tmp_path / "seen.html").stat().st_size > 1000
    watched = synthe("introspect", run, "--text", "x29n47]0]", "--watch")
    assert watched.exit_code == 2 and "leave out --watch" in watched.stderr
    bad = synthe("eval", "classify", run, "--data", tmp_path / "none.csv")
    assert bad.exit_code == 2 and "no such file" in bad.stderr and "Traceback" not in bad.stderr
