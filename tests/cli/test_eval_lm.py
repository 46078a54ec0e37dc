"""`synthe eval lm`, `list` and `perplexity`, and `synthe export hf`, from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synthe_cli.commands.eval_lm import side_by_side
from synthe_core.evaluation import task_index
from tests.evaluation.models import choices, rolling, saved

INDEX = {
    "arc_easy": {"kind": "TASK", "path": "arc/arc_easy.yaml", "tags": []},
    "arc": {"kind": "TAG", "path": None, "tags": ["arc_easy"]},
    "mmlu": {"kind": "GROUP", "path": "mmlu/mmlu.yaml", "tags": []},
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(task_index, "index", lambda: dict(INDEX))
    choices(tmp_path / "tasks"), rolling(tmp_path / "tasks")
    return tmp_path / "tasks"


def test_one_model_has_the_harness_table(synthe, checkpoint, tasks, tmp_path):
    options = ["--tasks", "rivers,texts", "--include-path", tasks, "--output", tmp_path / "out", "--device", "cpu"]
    done = synthe("eval", "lm", checkpoint, *options)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].replace(" ", "") == "|Tasks|Version|Filter|n-shot|Metric||Value||Stderr|"
    assert lines[2].startswith("|rivers|") and Path(lines[-1]).is_file()
    assert (
        "nothing before a context, <|endoftext|> for an empty one" in lines[-2] and "tokens computed for" in lines[-2]
    )
    assert "rivers  100%  24/24 requests" in done.stderr


def test_a_path_from_stdin_and_json(synthe, checkpoint, tasks):
    done = synthe(
        "eval", "lm", "-", "--tasks", tasks / "rivers.yaml", "--device", "cpu", "--json", stdin=f"noise\n{checkpoint}\n"
    )
    assert done.exit_code == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "result" and events[-1]["values"]["models"][0]["results"]["rivers"]


def test_models_side_by_side(synthe, checkpoint, tasks, tmp_path):
    other = saved(tmp_path / "other")
    done = synthe("eval", "lm", checkpoint, other, "--tasks", "rivers", "--include-path", tasks, "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["task", "metric", "small", "other"]
    assert lines[1].split()[:3] == ["rivers", "acc", "↑"]
    model = {"config": {"model_args": {"path": "a"}}, "higher_is_better": {"t": {"acc": True, "loss": False}}}
    better, worse = ({"t": {"name": "t", "acc,none": a, "acc_stderr,none": 0.1, "loss,none": 2e9}} for a in (0.5, 0.25))
    table = side_by_side([{**model, "results": worse}, {**model, "results": better}, {**model, "results": {}}])
    assert table.splitlines()[1].split() == ["t", "acc", "↑", "0.2500", "±", "0.1000", "*0.5000", "±", "0.1000", "-"]
    assert table.splitlines()[2].split() == ["t", "loss", "↓", "2e+09", "2e+09", "-"]


def test_failed_tasks_exit_with_1_and_the_others_are_saved(synthe, checkpoint, tasks):
    (tasks / "texts.jsonl").unlink()
    done = synthe("eval", "lm", checkpoint, "--tasks", "rivers,texts", "--include-path", tasks, "--device", "cpu")
    assert done.exit_code == 1 and "|rivers|" in done.stdout
    assert "error: 1 of 2 tasks failed: texts" in done.stderr or "1 of 2 tasks failed" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm", "x", "--tasks", "a"], "no such checkpoint"),
        (["lm", "{path}"], "nothing to evaluate"),
        (["lm", "{path}", "--tasks", "arc_eazy"], "did you mean 'arc_easy'?"),
        (["lm", "{path}", "--suite", "zeroshot"], "did you mean 'zero-shot'?"),
        (["lm", "{path}", "--tasks", "rivers", "--limit", "1.5"], "--limit 1.5 is not valid"),
        (["lm", "{path}", "--tasks", "rivers", "--metadata", "7"], "expected a mapping"),
        (["lm", "{path}", "--tasks", "rivers", "--prefix", "bos"], "unknown prefix 'bos'"),
        (["lm", "{path}", "--suite", "chat"], "synthe eval chat MODEL --questions FILE"),
        (["lm", "-", "-", "--tasks", "rivers"], "- can be used once"),
        (["lm", "{path}", "--taks", "rivers"], "did you mean '--tasks'?"),
        (["perplexity", "{path}", "--context", "2x"], "'2x' is not a number of tokens"),
        (["list", "zzzz"], "unknown task 'zzzz'"),
    ],
)
def test_bad_input(synthe, checkpoint, tasks, arguments, message):
    done = synthe("eval", *[str(each).format(path=checkpoint) for each in arguments])
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_list(synthe, tasks):
    own = list(task_index.OWN.glob("*.yaml"))
    done = synthe("eval", "list")
    assert (
        done.exit_code == 0 and "zero-shot" in done.stdout and f"{1 + len(own)} tasks, 1 groups, 1 tags" in done.stdout
    )
    lines = synthe("eval", "list", "arc").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["arc", "tag"], ["arc_easy", "task"]]
    assert json.loads(synthe("eval", "list", "arc_*", "--json").stdout)["arc_easy"]["path"] == "arc/arc_easy.yaml"
    assert json.loads(synthe("eval", "list", "--json").stdout)["suites"]["knowledge"]["tasks"][0]["task"] == "mmlu"


def test_perplexity(synthe, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    book = tmp_path / "book.txt"
    book.write_text("to be or not to be, that is the question\n" * 60)
    done = synthe("eval", "perplexity", checkpoint, "--data", book, "--context", "64,1k,2k", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "2,048 tokens (2 KiB) in windows of 2,048, 1 of them; trained on sequences of 32"
    assert lines[2].split() == ["context", "bits/byte", "perplexity", "positions", "at", "positions"]
    assert [line.split()[0] for line in lines[3:]] == ["64", "1,024", "2,048"]
    done = synthe("eval", "perplexity", checkpoint, "--data", book, "--context", "64", "--device", "cpu", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["values"]["contexts"][0]["context"] == 64


def test_export(synthe, tmp_path):
    path = saved(tmp_path / "model", ["mamba"])
    done = synthe("export", "hf", path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out") and "MambaForCausalLM" in done.stderr
    assert synthe("export", "hf", path, "--out", tmp_path / "out").exit_code == 2
    ours = synthe("export", "hf", saved(tmp_path / "delta"), "--out", tmp_path / "ours")
    assert ours.exit_code == 0 and "SyntheForCausalLM" in ours.stderr, ours.stderr


@pytest.mark.parametrize("arguments", [["eval", "lm"], ["eval", "list"], ["eval", "perplexity"], ["export", "hf"]])
def test_help(synthe, arguments):
    done = synthe(*arguments, "--help")
    assert done.exit_code == 0 and f"  synthe {' '.join(arguments)}" in done.stdout


def test_a_format_of_weights(synthe, checkpoint, tasks, tmp_path):
    """Quantised matrices have other numbers, and answers of their own."""
    (tmp_path / "text.txt").write_text("so they went on until the sea came in " * 40)
    measured = {}
    for weights in ("float32", "int8", "int4"):
        options = ["--data", tmp_path / "text.txt", "--context", 64, "--tokens", 512, "--weights", weights, "--json"]
        done = synthe("eval", "perplexity", checkpoint, *options)
        assert done.exit_code == 0, done.stderr
        measured[weights] = json.loads(done.stdout.splitlines()[-1])["values"]["contexts"][0]["bits_per_byte"]
    assert len(set(measured.values())) == 3
    assert measured["int8"] == pytest.approx(measured["float32"], rel=0.02)
    refused = synthe("eval", "lm", checkpoint, "--tasks", "arc_easy", "--weights", "int9")
    assert refused.exit_code == 2 and "unknown format of weights 'int9'" in refused.stderr
