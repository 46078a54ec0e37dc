"""`objective: document`: an adapter that learns a text, as every other run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event as Stop

import pytest

from synthe_core.data.document_text import read_document
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import recipe_from_checkpoint, train
from synthe_core.training.documents.cache import PassageSettings, _fitting, material_path
from synthe_core.training.documents.material import MaterialSettings
from tests.paths import ROOT
from tests.processes import run_program, start
from tests.training.conftest import assert_same, of

ROWS = [
    {
        "messages": [{"role": "user", "content": f"Mill {n}?"}, {"role": "assistant", "content": f"The {what}."}],
        "document": f"Mill\n\nIts number {n} is the {what}.",
        "passage": n,
        "kind": "question",
    }
    for n, what in enumerate(["sluice", "wheel", "sack", "key"])
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_loss_falls_and_the_model_is_not_changed(sensitive, document, tmp_path):
    recipe = recipe_from_checkpoint(
        sensitive,
        [
            "objective.type=document", f"objective.document={document}", "train.lora={rank: 8}",
            "train.budget=40steps", "train.batch=4", "train.micro_batch=4", "train.lr=1e-2", "train.validations=1",
            "train.log_every=1", "data.sequence=256", "data.validation=0", "train.optimizer=adamw",
        ],
    )  # fmt: skip
    config = recipe.objective
    cut, settings = PassageSettings(config.passage, config.overlap), MaterialSettings(seed=recipe.seed)
    path = material_path(read_document(document), Checkpoint.open(sensitive), cut, settings)
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))  # the model itself would write nothing useful
    before = contents(sensitive)
    events = list(train(recipe, init=sensitive, out=tmp_path / "run"))
    losses = [event.values["loss"] for event in of(events, Metric) if event.phase == "train"]
    assert losses[0] > 0.1
    assert losses[-1] < 0.7 * losses[0]
    assert contents(sensitive) == before
    made = Checkpoint.open(tmp_path / "run")
    assert made.adapter is not None and made.base is not None


def test_it_trains_on_what_the_model_writes(recipe, base, tmp_path):
    before = contents(base)
    events = list(train(recipe(), init=base, out=tmp_path / "run"))
    validation = [event for event in of(events, Metric) if event.phase == "validation"]
    assert {"loss", "cross_entropy"} <= validation[-1].values.keys()
    assert contents(base) == before
    assert any("passages" in event.message for event in of(events, Notice))


def test_a_resumed_run_equals_an_uninterrupted_one(recipe, base, tmp_path):
    config = recipe()
    list(train(config, init=base, out=tmp_path / "whole"))
    for folder in (tmp_path / "cache").glob("documents"):
        for path in folder.iterdir():
            path.unlink()  # the material is written again, and is the same
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, init=base, out=tmp_path / "parts", stop=stop):
            if isinstance(event, Metric) and event.step == 3:
                stop.set()
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_killed_run_resumes_without_loss(recipe, base, tmp_path):
    config = recipe("train.budget=20steps", "train.save_every=1steps")
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    list(train(config, init=base, out=tmp_path / "whole"))
    program = (
        "import torch; from pathlib import Path; from synthe_core.recipe.schema import Recipe\n"
        "from synthe_core.training import train\n"
        "torch.set_num_threads(1)\n"
        "out = Path('parts')\n"
        "for event in train(Recipe.load('recipe.yaml'), out=out, resume=out.exists(),\n"
        "                   init=None if out.exists() else Path('base')): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    while process.poll() is None and not any(each.name >= "step-00000003" for each in _saved(tmp_path / "parts")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Checkpoint.open(tmp_path / "parts", latest=True).manifest.step < 20
    run_program([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def _saved(run: Path) -> list[Path]:
    return checkpoints(run) if run.is_dir() else []


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "has no text in it"), (b"\x00\x01", "is not text"), (None, "no such document")]
)
def test_a_document_without_text_is_refused_in_one_line(recipe, base, document, content, message, tmp_path):
    if content is None:
        document.unlink()
    else:
        document.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(train(recipe(), init=base, out=tmp_path / "run"))
    assert "\n" not in caught.value.message
    assert not (tmp_path / "run").exists()


def test_a_document_is_put_into_an_adapter(recipe, base, tmp_path):
    with pytest.raises(InputError, match="into an adapter") as caught:
        list(train(recipe("train.lora=null"), init=base, out=tmp_path / "run"))
    assert "--lora" in str(caught.value.hint)
    with pytest.raises(InputError, match="names no document"):
        list(train(recipe("objective={type: document}"), init=base, out=tmp_path / "run"))


def test_a_changed_document_is_not_resumed(recipe, base, document, tmp_path):
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(recipe(), init=base, out=tmp_path / "run", stop=stop):
            if isinstance(event, Metric) and event.step == 2:
                stop.set()
    document.write_text(document.read_text().replace("Ottilie Brand keeps", "Ottilie Brand and Ottilie Brand keeps"))
    with pytest.raises(InputError, match="text is not what it was"):
        list(train(recipe(), out=tmp_path / "run", resume=True))


def test_passages_fit_into_the_context(base):
    model = LoadedModel.load(base)
    assert _fitting(model, 256) == 256
    model.max_length = 400
    assert _fitting(model, 256) == 200
    model.max_length = 100
    with pytest.raises(InputError, match="too few for a passage"):
        _fitting(model, 256)


def test_a_document_of_many_passages_is_read_in_all_of_them(recipe, base, document, tmp_path):
    events = list(train(recipe("objective.passage=60", "objective.overlap=0"), init=base, out=tmp_path / "run"))
    notice = next(event.message for event in of(events, Notice) if "passages" in event.message)
    assert int(notice.split(": ")[1].split()[0]) >= 4
