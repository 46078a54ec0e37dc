"""`eval lm` end to end, offline: small models on small tasks in the harness's own format."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.evaluation import lm, suites, task_index
from synthe_core.evaluation.lm import EvalConfig, evaluate
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.training import train
from tests.evaluation.models import ATTENTION, choices, rolling, saved, task, written
from tests.training.conftest import _own_folders, cache, of, recipe, text  # noqa: F401  (fixtures)

TASKS = ("rivers", "texts", "writing")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three tasks, one of each kind; the hub is not contacted."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "tasks"
    choices(folder), rolling(folder), written(folder)
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


def run(paths: list[Path], folder: Path, **options: Any) -> list[Event]:
    return list(evaluate(paths, EvalConfig(**{"tasks": TASKS, "include": [folder], "device": "cpu"} | options)))


def results(events: list[Event]) -> list[dict[str, Any]]:
    assert isinstance(events[-1], Result)
    return events[-1].values["models"]  # type: ignore[return-value]


def test_a_trained_model(recipe, tasks, tmp_path):  # noqa: F811
    """Training, then three kinds of tasks, and the files that the harness would write."""
    data = {"tokenizer": "bytes", "sequence": 32}
    list(train(recipe(data=data, budget="30steps"), out=tmp_path / "run"))
    events = run([tmp_path / "run"], tasks, output=tmp_path / "out", log_samples=True)
    (summary,) = results(events)
    assert set(summary["results"]) == set(TASKS) and summary["n-samples"]["rivers"] == {"original": 6, "effective": 6}
    assert 0 <= summary["results"]["rivers"]["acc,none"] <= 1
    assert 0 < summary["results"]["texts"]["bits_per_byte,none"] < 6  # better than the 8 of knowing nothing
    file = events[-1].path
    saved = json.loads(file.read_text())
    assert saved["results"] == summary["results"]
    harness = {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}
    harness |= {"git_hash", "date", "pretty_env_info", "lm_eval_version", "task_hashes", "model_name", "chat_template"}
    harness |= {"tokenizer_eos_token", "max_length", "total_evaluation_time_seconds", "fewshot_as_multiturn"}
    assert harness <= saved.keys() and saved["config"]["model"] == "synthe"
    ours = saved["synthe"]
    assert ours["recipe_digest"] and ours["hardware"]["cores"] and ours["seconds"] > 0 and ours["step"] == 30
    assert (ours["context_prefix"], ours["empty_context"]) == (None, "<|endoftext|>")
    assert ours["tokens"]["computed"] > 0 and 0 < ours["tokens"]["generated"] <= 16
    assert ours["length"] == {"trained": 32, "limit": None, "longer": 9, "longer_are": "run as they are"}
    assert {each.name.split("_20")[0] for each in file.parent.iterdir()} == {
        "results",
        *(f"samples_{t}" for t in TASKS),
    }
    (samples,) = file.parent.glob("samples_rivers_*")
    first = json.loads(samples.read_text().splitlines()[0])
    assert len(first["resps"]) == 4 and first["doc"]["question"] == "the river runs to the 0"
    progress = [event for event in of(events, Progress) if event.what == "rivers"]
    assert (progress[-1].done, progress[-1].total, progress[-1].unit) == (24, 24, "requests")


def test_results_do_not_depend_on_the_batch(path, tasks):
    one, many = (results(run([path], tasks, batch_size=n, num_fewshot=1))[0] for n in (1, 32))
    for name in TASKS:
        for metric, value in one["results"][name].items():
            assert many["results"][name][metric] == (pytest.approx(value, abs=1e-4) if metric != "name" else value)
    assert one["n-shot"]["rivers"] == 1


def test_a_failing_task_is_reported_and_skipped(path, tasks, tmp_path):
    choices(tasks, "lost")
    (tasks / "lost.jsonl").unlink()
    task(tasks, "crooked", [{"a": 1}], output_type="loglikelihood", doc_to_text="{{a}}", doc_to_target="{{1/0}}")
    afar = {"dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    task(tasks, "afar", [], output_type="loglikelihood", doc_to_text="a", doc_to_target="b", **afar)
    events: list[Event] = []
    with pytest.raises(WorkError, match=r"3 of 4 tasks failed: lost, crooked, afar") as caught:
        config = EvalConfig(
            tasks=["lost", "crooked", "rivers", "afar"], include=[tasks], output=tmp_path / "out", device="cpu"
        )
        for event in evaluate([path], config):
            events.append(event)
    assert caught.value.exit_code == 1
    (summary,) = results(events)
    assert list(summary["results"]) == ["rivers"] and events[-1].path.is_file()
    warnings = [event.message for event in of(events, Notice) if event.level == "warning"]
    assert "lost is not evaluated: its data is not there" in warnings[0] and str(tasks) in warnings[0]
    assert "crooked is not evaluated: ZeroDivisionError" in warnings[1]
    assert "afar is not evaluated: its data is not on disk and cannot be fetched" in warnings[2]
    assert set(summary["synthe"]["failed"]) == {"lost", "crooked", "afar"}
    assert not any("\n" in line for line in warnings)


def test_an_interrupted_run_resumes(path, tasks, tmp_path, monkeypatch):
    stop, config = (
        threading.Event(),
        EvalConfig(tasks=TASKS, include=[tasks], output=tmp_path / "out", device="cpu", batch_size=2),
    )
    with pytest.raises(Interrupted, match="answers are saved") as caught:
        for event in evaluate([path], config, stop):
            if isinstance(event, Progress) and event.done:
                stop.set()
    assert caught.value.exit_code == 130 and "--resume" in caught.value.hint
    (file,) = (tmp_path / "out").rglob("answers-*.jsonl")
    before = len(file.read_text().splitlines())
    assert 0 < before < 24
    (whole,) = results(run([path], tasks))
    events = run([path], tasks, output=tmp_path / "out", resume=True)
    (summary,) = results(events)
    assert f"reusing {before} answers of an earlier run" in [event.message for event in of(events, Notice)]
    for name in TASKS:
        assert summary["results"][name] == {
            key: value if isinstance(value, str) else pytest.approx(value, abs=1e-5)
            for key, value in whole["results"][name].items()
        }
    assert summary["synthe"]["tokens"]["requested"] < whole["synthe"]["tokens"]["requested"]
    assert not file.exists()  # the run is done


def test_a_cache_stores_answers_across_runs(path, tasks, tmp_path):
    first = results(run([path], tasks, use_cache=tmp_path / "answers"))[0]
    again = results(run([path], tasks, use_cache=tmp_path / "answers"))[0]
    assert again["results"] == first["results"] and again["synthe"]["tokens"]["computed"] == 0
    other = saved(tmp_path / "other", ATTENTION)
    assert results(run([other], tasks, use_cache=tmp_path / "answers"))[0]["synthe"]["tokens"]["computed"] > 0


def test_several_models(path, tasks, tmp_path):
    other = saved(tmp_path / "other", ATTENTION)
    events = run([path, other], tasks, tasks=["rivers"])
    one, two = results(events)
    assert one["config"]["model_args"] == {"path": str(path)} and two["synthe"]["length"]["limit"] == 64
    assert {event.what for event in of(events, Progress)} == {"rivers of model", "rivers of other"}


def test_a_suite_is_an_editable_file(path, tasks, tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text(yaml.safe_dump({"tasks": [{"task": "rivers", "num_fewshot": 2}, "texts"]}))
    (summary,) = results(run([path], tasks, tasks=(), suites=[str(suite)]))
    assert list(summary["results"]) == ["rivers", "texts"] and summary["n-shot"]["rivers"] == 2
    for text_, message in (
        ("tasks: []", "tasks: list should have at least 1 item"),
        ("tasks: [{tsk: a}]", "tasks.0"),
        ("a: [", "is not YAML"),
        ("- a", "suite: input should be a valid"),
    ):
        suite.write_text(text_)
        with pytest.raises(InputError) as caught:
            suites.load_suite(str(suite))
        assert message in caught.value.message and "\n" not in caught.value.message
    with pytest.raises(InputError) as caught:
        suites.load_suite("zero-shoot")
    assert caught.value.hint == "did you mean 'zero-shot'?"


def test_a_pass_key_is_hidden_at_a_length(path, tasks):
    options = {"tasks": ["passkey"], "metadata": {"max_seq_lengths": [256, 512]}, "limit": 60}
    (summary,) = results(run([path], tasks, **options))
    scores = summary["results"]["passkey"]
    assert scores["acc,none"] == 0 and {"256,none", "512,none"} <= scores.keys()
    from synthe_core.data.tokenizers import ByteTokenizer
    from synthe_core.evaluation.tasks.passkey import documents, judge
    from synthe_core.evaluation.tasks.passkey import text as hidden

    near, far = (hidden("12345", 2000, depth, ByteTokenizer()) for depth in (1.0, 0.0))
    assert far.index("12345") < 200 < 1500 < near.index("12345") and 1800 < len(far.encode()) <= 2000
    rows = documents(max_seq_lengths=(256,))["test"]
    assert len(rows) == 50 and rows[0]["key"] in rows[0]["text"]
    assert judge(rows[0], [f" {rows[0]['key']}."]) == {"acc": 1.0, "256": 1.0}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"tasks": ["rivres"]}, "unknown task 'rivres'", "did you mean 'rivers'?"),
        ({"tasks": ["none.yaml"]}, "no such task file: none.yaml", "a task is a YAML file"),
        ({"tasks": ()}, "nothing to evaluate", "synthe eval list"),
        ({"include": [Path("none")]}, "no such folder of tasks: none", "--include-path"),
        ({"log_samples": True}, "--log-samples writes files", "--output"),
        ({"output": Path("results.json")}, "is not a folder", "a folder for each model"),
    ],
)
def test_bad_input(path, tasks, options, message, hint, monkeypatch):
    monkeypatch.setattr(task_index, "index", dict)
    with pytest.raises(InputError) as caught:
        run([path], tasks, **options)
    assert message in caught.value.message and hint in caught.value.hint


def test_the_bootstrap_is_short_and_forks_nothing(path, tasks):
    assert results(run([path], tasks, tasks=["rivers"]))[0]["config"]["bootstrap_iters"] == lm.BOOTSTRAP


@pytest.mark.slow
def test_shipped_suites_name_tasks_that_there_are():
    known = task_index.names(None)
    for name, file in suites.suites().items():
        for entry in suites.load_suite(str(file)).entries:
            assert entry.task in known, (name, entry.task)
