"""A run over streamed text that is stopped, or killed, goes on with the bits of one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest
import torch

from synthe_core.data.streaming import stream_shard
from synthe_core.errors import InputError, Interrupted
from synthe_core.evaluation.held_out import held_out
from synthe_core.events import Metric, Result
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import recipe_from_checkpoint, train
from tests.paths import ROOT, SHARED
from tests.processes import run_program, start
from tests.training.conftest import WORDS, assert_same, of

SHARD = 320
"""Tokens: five batches of four sequences of 16."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stream_shard, "SHARD", SHARD)
    return tmp_path / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = (" ".join(WORDS[(k * k + k * n) % len(WORDS)] for k in range(20 + n % 9)) for n in range(60))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def streamed(recipe: Callable[..., Recipe], rows: Path) -> Callable[..., Recipe]:
    def make(data: dict[str, Any] | None = None, **train: Any) -> Recipe:
        data = {"sources": str(rows), "stream": True, "validation": 0.1} | (data or {})
        return recipe(data=data, **{"budget": "40steps", "validations": 2, "log_every": 1, **train})

    return make


def losses(run: Path) -> list[tuple[int, str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["phase"], line["loss"]) for line in lines]


def harm_none(cache: Path) -> None:
    pass


def harm_removed(cache: Path) -> None:
    shutil.rmtree(cache / "streams")


def harm_damaged(cache: Path) -> None:
    for path in (cache / "streams").glob("*/*.bin"):
        path.write_bytes(bytes(len(path.read_bytes())))


@pytest.mark.parametrize("harm", [harm_none, harm_removed, harm_damaged])
@pytest.mark.parametrize("stages", [[], [{"until": 0.5, "sequence": 8}]])
def test_a_resumed_run_equals_an_uninterrupted_one(streamed, harm, stages, own_cache, tmp_path):
    config = streamed(stages=stages)
    list(train(config, out=tmp_path / "whole"))
    for step in (3, 5, 17):  # within a shard, at the end of one, and later
        stop = Stop()
        with pytest.raises(Interrupted, match=f"stopped at step {step}; saved"):
            for event in train(config, out=tmp_path / "parts", resume=step > 3, stop=stop):
                if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                    stop.set()
        torch.manual_seed(step)
        harm(own_cache)
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.slow
def test_a_run_killed_at_any_time_reads_on_with_the_next_row(streamed, own_cache, tmp_path):
    config = streamed(save_every="1steps")
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    list(train(config, out=tmp_path / "whole"))
    program = (
        "import sys, torch; from pathlib import Path; from synthe_core.recipe.schema import Recipe\n"
        "from synthe_core.data.streaming import stream_shard\n"
        "from synthe_core.training import train\n"
        f"torch.set_num_threads(1); stream_shard.SHARD = {SHARD}\n"
        "out = Path('parts')\n"
        "for event in train(Recipe.load('recipe.yaml'), out=out, resume=out.exists()): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for kill_after, harm in ((2, harm_damaged), (12, harm_removed), (27, harm_none)):
        process = start([sys.executable, "-c", program], cwd=tmp_path, env=environment)
        while last(tmp_path / "parts") < kill_after and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        harm(own_cache)
    run_program([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert not list(own_cache.rglob("*.partial"))


STALLING = """
import sys, threading
from synthe_core.data.streaming import stream_shard, token_reader
from synthe_cli.app import main
stream_shard.SHARD, token_reader.BATCH = 320, 500
placed, texts = token_reader.TokenReader._placed, int(sys.argv.pop())
def stalling(self, pieces, position):
    for number, each in enumerate(placed(self, pieces, position)):
        if number == texts:
            print("stalled", file=sys.stderr, flush=True)
            threading.Event().wait()  # as a connection that gives no more
        yield each
token_reader.TokenReader._placed = stalling
sys.argv[0] = "synthe"
main()
"""


@pytest.mark.parametrize("texts", [1, 12])
def test_ctrl_c_does_not_wait_for_text_that_does_not_come(streamed, own_cache, tmp_path, texts):
    """Before the first batch, and in a step after which there is no other."""
    config = streamed(data={"validation": 0.0})
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    arguments = ["train", "recipe.yaml", "--out", "run", "--json", str(texts)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start(
        [sys.executable, "-c", STALLING, *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("stalled" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    saved = last(tmp_path / "run")
    assert f"stopped at step {saved}" in errors
    assert (saved > 0) == (texts > 1)


def last(run: Path) -> int:
    paths = checkpoints(run)
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


def test_text_that_has_changed_is_refused_on_resuming(streamed, rows, tmp_path):
    config = streamed(budget="7steps")
    list(train(config, out=tmp_path / "run"))
    rows.write_text(rows.read_text().replace("river", "rover"))
    config = streamed(budget="9steps", data={"validation": 0.1})
    with pytest.raises(InputError, match=r"validation text is not what it was|has changed since the run began"):
        list(train(config, out=tmp_path / "run", resume=True))


def test_changed_training_text_is_refused_on_resuming(streamed, rows, tmp_path):
    list(train(streamed(budget="7steps", data={"validation": 0}), out=tmp_path / "run"))
    rows.write_text(rows.read_text().replace("river", "rover"))
    with pytest.raises(InputError, match=r"rows\.jsonl' has changed since the run began") as refused:
        list(train(streamed(budget="9steps", data={"validation": 0}), out=tmp_path / "run", resume=True))
    assert "\n" not in refused.value.message


def test_a_new_run_over_unusable_text_leaves_nothing(streamed, rows, tmp_path):
    rows.write_text('{"body": "no text"}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: unknown field 'text'"):
        list(train(streamed(data={"validation": 0}), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_held_out_text_is_that_of_the_run(streamed, tmp_path):
    events = list(train(streamed(budget="2steps"), out=tmp_path / "run"))
    metrics = [event.values for event in of(events, Metric) if event.phase == "validation"]
    assert metrics[-1]["bits_per_byte"] > 0
    assert all("bits_per_byte" in event.values for event in of(events, Metric) if event.phase == "train")
    checkpoint = Checkpoint.open(tmp_path / "run", latest=True)
    work = held_out(checkpoint.recipe.data, checkpoint.tokenizer())
    with pytest.raises(StopIteration) as end:
        while True:
            next(work)
    assert end.value.value.digest == checkpoint.training_state()["text"]["validation"]


def test_a_streamed_run_is_trained_further_on_rows(streamed, rows, tmp_path):
    list(train(streamed(budget="2steps"), out=tmp_path / "run"))
    assert recipe_from_checkpoint(tmp_path / "run").data.stream
    (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    changes = [f"data.sources={tmp_path / 'chats.jsonl'}", "objective.type=sft", "train.budget=2epochs"]
    changed = recipe_from_checkpoint(tmp_path / "run", changes)
    assert not changed.data.stream and changed.reads == "conversations"
    again = recipe_from_checkpoint(tmp_path / "run", [f"data.sources={rows}", "data.stream=true"])
    assert again.data.stream


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"budget": "2epochs"}, "train.budget: the number of sequences in a stream is not known"),
        ({"save_every": "1epochs"}, "train.save_every: the number of sequences in a stream is not known"),
        ({"carry": True}, "train.carry: the rows of streamed text do not continue each other"),
        ({"objective": "sft"}, "data.stream: sft reads rows, which are read once and then cached"),
    ],
)
def test_what_a_stream_is_not_for_is_refused(streamed, tmp_path, keys, message):
    values = streamed().model_dump(mode="json")
    values["objective"] = keys.pop("objective", None)
    values["train"] |= keys
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as refused:
        Recipe.load(tmp_path / "recipe.yaml")
    assert refused.value.hint


def test_a_data_set_of_the_hub_is_streamed_offline(streamed, tmp_path, monkeypatch):
    folder = SHARED / "data" / "hub"
    if not folder.is_dir():
        pytest.skip("no shared data here")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.chdir(folder)
    data = {
        "sources": "hub:EleutherAI/wikitext_document_level:wikitext-2-raw-v1:test",
        "field": "page",
        "validation": 0.1,
    }
    config = streamed(data=data, budget="12steps")
    list(train(config, out=tmp_path / "whole"))
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, out=tmp_path / "parts", stop=stop):
            if isinstance(event, Metric) and event.step == 7:
                stop.set()
    shutil.rmtree(tmp_path / "cache" / "streams")
    events = list(train(config, out=tmp_path / "parts", resume=True))
    assert isinstance(events[-1], Result)
    assert_same(tmp_path / "whole", tmp_path / "parts")
