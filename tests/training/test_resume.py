"""Stopping and going on is the same as never stopping, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event as Stop

import pytest
import torch

from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice, Result
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.storage.manifest import FileDigest
from synthe_core.training import train
from tests.paths import ROOT
from tests.processes import run_program, start
from tests.training.conftest import assert_same, of

VARIANTS = {
    "muon": {},
    "adamw": {"optimizer": "adamw", "schedule": "wsd"},
    "average": {"ema": 0.9},
    "carried": {"carry": True, "stages": [{"until": 0.7, "sequence": 8}]},
    "stages": {"stages": [{"until": 0.4, "sequence": 4}, {"until": 0.8, "sequence": 8}]},
    "time between": {"save_every": "1steps", "keep": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, name, tmp_path):
    config = recipe(**VARIANTS[name])
    list(train(config, out=tmp_path / "whole"))
    for step in (1, 4):
        stop = Stop()
        with pytest.raises(Interrupted, match=f"stopped at step {step}; saved") as stopped:
            for event in train(config, out=tmp_path / "parts", resume=step > 1, stop=stop):
                if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                    stop.set()
        assert stopped.value.hint == f"resume with: synthe train {tmp_path / 'parts'} --resume"
        torch.manual_seed(step)  # another process would have other random numbers
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")


def _losses(run: Path) -> list[tuple[int, str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["phase"], line["loss"]) for line in lines]


def test_a_run_killed_at_any_time_resumes_without_loss(recipe, tmp_path):
    config = recipe(budget="30steps", save_every="1steps", validations=3)
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    list(train(config, out=tmp_path / "whole"))
    program = (
        "import sys, torch; from pathlib import Path; from synthe_core.recipe.schema import Recipe\n"
        "from synthe_core.training import train\n"
        "torch.set_num_threads(1)\n"
        "out = Path('parts')\n"
        "for event in train(Recipe.load('recipe.yaml'), out=out, resume=out.exists()): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for kill_after in (2, 11, 24):
        process = start([sys.executable, "-c", program], cwd=tmp_path, env=environment)
        while _last(tmp_path / "parts") < kill_after and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        Checkpoint.open(tmp_path / "parts", latest=True).training_state()
    run_program([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")
    assert not list((tmp_path / "parts" / "checkpoints").glob(".*"))


def _last(run: Path) -> int:
    paths = checkpoints(run)
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


def test_a_run_killed_before_its_first_checkpoint_begins_again(recipe, tmp_path):
    config = recipe()
    list(train(config, out=tmp_path / "whole"))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "recipe.yaml").write_text(config.to_yaml())
    (tmp_path / "parts" / "metrics.jsonl").write_text('{"step": 1, "phase": "train", "loss": 5.5}\n{"step": 2, "ph')
    events = list(train(config, out=tmp_path / "parts", resume=True))
    assert any("no checkpoint yet" in notice.message for notice in of(events, Notice))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"width": 32}}, "model: model.width: 16 -> 32"),
        ({"data": {"sequence": 8}}, "data: data.sequence: 16 -> 8"),
        ({"optimizer": "adamw"}, 'train: train.optimizer: "muon" -> "adamw"'),
        ({"batch": 8}, "train: train.batch: 4 -> 8"),
    ],
)
def test_a_changed_model_is_refused_by_name(recipe, change, named, tmp_path):
    list(train(recipe(), out=tmp_path / "run"))
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(InputError, match="cannot be resumed with another") as refused:
        list(train(recipe(**change), out=tmp_path / "run", resume=True))
    assert named in refused.value.message
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


def test_changed_text_is_refused(recipe, text, tmp_path):
    list(train(recipe(), out=tmp_path / "run"))
    (text / "more.txt").write_text("words " * 500)
    with pytest.raises(
        InputError, match=r"training text is not what it was: .* has changed since the run began: .* not "
    ):
        list(train(recipe(), out=tmp_path / "run", resume=True))


def test_other_text_of_as_many_tokens_is_refused(recipe, text, tmp_path):
    plain = {"validation": 0}  # a fraction would be other documents, and another number of tokens
    list(train(recipe(data=plain), out=tmp_path / "run"))
    before = {path: path.read_text() for path in sorted(text.iterdir())}
    for path, content in before.items():
        path.write_text(content.replace("r", "s"))
    with pytest.raises(
        InputError, match=r"training text is not what it was: .*: as many tokens, but others"
    ) as refused:
        list(train(recipe(data=plain), out=tmp_path / "run", resume=True))
    assert "restore the old text" in refused.value.hint
    for path, content in before.items():
        path.write_text(content)
    events = list(train(recipe(data=plain, budget="7steps"), out=tmp_path / "run", resume=True))
    assert [m.step for m in of(events, Metric) if m.phase == "train"] == [7]


def test_other_validation_text_is_refused(recipe, text, tmp_path):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("the stone remembers the river\n" * 50)
    config = recipe(data={"validation": str(held_out)})
    list(train(config, out=tmp_path / "run"))
    held_out.write_text("the river remembers the stone\n" * 50)
    with pytest.raises(InputError, match="validation text is not what it was: it has changed since the run began"):
        list(train(config, out=tmp_path / "run", resume=True))


def test_the_state_of_a_run_says_which_text_it_is(recipe, text, tmp_path):
    list(train(recipe(), out=tmp_path / "run"))
    facts = Checkpoint.open(tmp_path / "run", latest=True).training_state()["text"]
    assert len(facts["digests"]) == len(facts["tokens"]) == 1
    assert len(facts["digests"][0]) == len(facts["validation"]) == 64


def test_a_finished_run_is_reported_and_a_larger_budget_continues_it(recipe, tmp_path):
    list(train(recipe(), out=tmp_path / "run"))
    events = list(train(recipe(), out=tmp_path / "run", resume=True))
    assert "finished" in of(events, Notice)[-1].message and "6steps" in of(events, Notice)[-1].message
    assert isinstance(events[-1], Result) and events[-1].path == tmp_path / "run"
    assert not of(events, Metric)
    events = list(train(recipe(budget="9steps"), out=tmp_path / "run", resume=True))
    assert any("train.budget" in notice.message for notice in of(events, Notice))
    assert [m.step for m in of(events, Metric) if m.phase == "train"] == [7, 8, 9]
    assert Checkpoint.open(tmp_path / "run", latest=True).manifest.step == 9
    assert "9steps" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_seconds_of_earlier_sessions_count(recipe, tmp_path):
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(recipe(budget="1h"), out=tmp_path / "run", stop=stop):
            if isinstance(event, Metric):
                stop.set()
    path = checkpoints(tmp_path / "run")[-1]
    checkpoint = Checkpoint(path)
    used = checkpoint.training_state()["seconds"]
    assert used > 0
    # 0.1 s more than what was used is over as soon as a step is taken.
    events = list(train(recipe(budget=f"{used + 0.1}s"), out=tmp_path / "run", resume=True))
    assert len([m for m in of(events, Metric) if m.phase == "train"]) < 20
    assert events[-1].values["seconds"] >= used


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such run"),
        (lambda path: path.mkdir(), "no such run"),
        (lambda path: (path.mkdir(), (path / "x").write_text("x")), "is not a run"),
    ],
)
def test_resuming_without_a_checkpoint(recipe, make, message, tmp_path):
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        list(train(recipe(), out=tmp_path / "run", resume=True))


def test_garbage_among_the_metrics_is_noted(recipe, tmp_path):
    list(train(recipe(), out=tmp_path / "run"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_bytes(b"\xff\x00 garbage\n" + metrics.read_bytes() + b'{"step": ')
    events = list(train(recipe(budget="7steps"), out=tmp_path / "run", resume=True))
    assert any("1 lines are no metrics" in notice.message for notice in of(events, Notice))
    assert [m.step for m in of(events, Metric) if m.phase == "train"] == [7]


HARM = {
    "binary": b"\x00\xff\xfe",
    "cut": b'{"step": 6, "tok',
    "list": b"[]",
    "deep": b"[" * 100_000,
    "number": b"7",
    "missing": ("step", None),
    "text": ("tokens", "many"),
    "true": ("stage", True),
    "cursor": ("cursor", {"sequences": "x", "drawn": [1]}),
    "drawn": ("cursor", {"sequences": 1, "drawn": 1}),
    "negative": ("cursor", {"sequences": -1, "drawn": [-1]}),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("signed", [False, True])
def test_a_damaged_state_is_one_line(recipe, harm, signed, tmp_path):
    """`signed`: the manifest says so too, so that the digest is right and the content is not."""
    list(train(recipe(), out=tmp_path / "run"))
    folder = checkpoints(tmp_path / "run")[-1]
    state, value = folder / "training" / "state.json", HARM[harm]
    if isinstance(value, tuple):
        facts = json.loads(state.read_text()) | {value[0]: value[1]}
        value = json.dumps(facts).encode()
    state.write_bytes(value)
    if signed:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["training/state.json"] = FileDigest.of(state).model_dump()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="damaged") as refused:
        list(train(recipe(budget="7steps"), out=tmp_path / "run", resume=True))
    assert "\n" not in refused.value.message
