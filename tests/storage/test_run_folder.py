"""The folder of a run: metrics that match the steps, retained checkpoints, removed leftovers."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec

import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.recipe.differences import differences
from synthe_core.storage import atomic
from synthe_core.storage.checkpoint import checkpoints
from synthe_core.storage.claim import REPLACED, partial_path
from synthe_core.storage.manifest import Manifest
from synthe_core.storage.run_folder import RunFolder
from synthe_core.training import loggers


def steps(run: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_rewound(tmp_path):
    run = RunFolder(tmp_path / "run")
    for step in range(1, 6):
        run.record(step, "train", {"loss": math.nan if step == 2 else 1.0 / step})
    assert steps(run) == [1, 2, 3, 4, 5]
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[1])["loss"] is None
    run.rewind(3)
    run.record(4, "train", {"loss": 0.0})
    assert steps(run) == [1, 2, 3, 4]
    run.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "pha')  # cut short by a crash
    run = RunFolder(tmp_path / "run")
    run.rewind(9)
    assert steps(run) == [1, 2, 3, 4]
    run.close()


def test_lines_that_are_no_metrics_stay_and_are_counted(tmp_path):
    folder = tmp_path / "run"
    RunFolder(folder).close()
    lines = [
        b'{"step": 1}\n',
        b"\x00\xff\xfe\n",
        b"[]\n",
        b'{"step": "2"}\n',
        b'{"step": true}\n',
        b"{" * 99_999 + b"\n",
    ]
    more = [b'{"step": 2}\n', b"[" * 99_999 + b"\n", b'{"step": 3}\n', b"garbage\n", b"cut"]
    (folder / "metrics.jsonl").write_bytes(b"".join([*lines, *more]))
    run = RunFolder(folder)
    assert run.rewind(2) == 6
    run.close()
    assert (folder / "metrics.jsonl").read_bytes() == b"".join([*lines, *more[:2]])


def put(run: RunFolder, step: int, score: float | None) -> None:
    path = run.checkpoint(step)
    path.mkdir()
    facts = Manifest(step=step, metrics={} if score is None else {"bits_per_byte": score})
    (path / "manifest.json").write_text(facts.model_dump_json())


def test_the_newest_and_the_best_checkpoint_are_retained(tmp_path):
    run = RunFolder(tmp_path / "run")
    for step, score in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        put(run, step, score)
    run.prune(2)
    assert [int(path.name[5:]) for path in checkpoints(run.path)] == [2, 4, 5]
    run.prune(1)
    assert [int(path.name[5:]) for path in checkpoints(run.path)] == [2, 5]
    run.close()


def test_leftovers_are_removed_and_an_incomplete_replacement_is_undone(tmp_path):
    run = RunFolder(tmp_path / "run")
    put(run, 1, 1.0)
    run.close()
    folder = tmp_path / "run" / "checkpoints"
    partial_path(folder / "step-00000002").mkdir()
    (folder / "step-00000001").rename(partial_path(folder / "step-00000001").with_suffix(REPLACED))
    RunFolder(tmp_path / "run").close()
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]


def test_a_failed_folder_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkError, match="could not be written"), atomic.new_folder(tmp_path / "file" / "a"):
        pass


def test_files_are_replaced_atomically(tmp_path, monkeypatch):
    atomic.write_file(tmp_path / "a", "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(WorkError, match="the disk is full"):
        atomic.write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_differences_are_named():
    old = {"a": 1, "b": {"c": [1, {"d": 2}], "e": "x"}, "f": [1]}
    new = {"a": 1, "b": {"c": [1, {"d": 3}], "e": "x"}, "f": [1, 2], "g": None}
    assert differences(old, new) == ["b.c.1.d: 2 -> 3", "f: [1] -> [1, 2]"]
    assert differences(old, old) == []


def test_a_logger_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="trackio, which is not installed") as refused:
        loggers.require(["trackio"])
    assert refused.value.hint == "pip install 'synthe[log]'"
    loggers.require([])


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_gets_what_metrics_has(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from synthe_core.training import train

    list(train(recipe(runtime={"log": ["tensorboard"]}), out=tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in events.Scalars("validation/bits_per_byte")] == [3, 6]
