"""Runs with a reference: it stays as it is, resuming is exact, and its values are computed once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest
import torch

from synthe_core.data.stream import Batch
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import train
from synthe_core.training.objectives import frozen_pass
from synthe_core.training.objectives.reference import Reference
from synthe_core.training.objectives.reference_cache import MAX_FILES, ReferenceCache
from tests.paths import ROOT
from tests.processes import run_program, start
from tests.training.conftest import assert_same, of
from tests.training.preferences import model_of, pairs, perturb, ready

LORA = {"rank": 2, "targets": ["attention"]}


def preferences(path: Path, count: int = 20) -> Path:
    lines = []
    for number in range(count):
        sides = [f"It is {number + 1}.", f"No idea {'at all ' * (number % 3)}about it."]
        row = {"prompt": f"What comes after {number}?", "chosen": sides[0], "rejected": sides[1]}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, cache, monkeypatch):  # type: ignore[no-untyped-def]
    """Each test computes its references itself; native kernels are compiled once."""
    own = tmp_path / "cache"
    own.mkdir()
    (own / "native").symlink_to(cache / "native", target_is_directory=True)
    (cache / "native").mkdir(exist_ok=True)
    monkeypatch.setenv("SYNTHE_CACHE", str(own))


@pytest.fixture
def make(recipe, tmp_path):  # type: ignore[no-untyped-def]
    def build(objective: Any = "dpo", **keys: Any) -> Recipe:
        data = {"sources": str(preferences(tmp_path / "pairs.jsonl")), "sequence": 96}
        made = recipe(data=data, **{"budget": "5steps", "validation_tokens": 10_000} | keys)
        return Recipe.model_validate(made.model_dump() | {"objective": objective})

    return build


@pytest.fixture
def base(recipe, tmp_path):  # type: ignore[no-untyped-def]
    list(train(recipe(budget="2steps", validations=1), out=tmp_path / "base"))
    return tmp_path / "base"


@pytest.fixture
def count_rows(monkeypatch):  # type: ignore[no-untyped-def]
    """How many rows passes without a gradient read."""
    rows: list[int] = []
    inner = frozen_pass.answer_logprobs

    def counted(model: Any, batch: Batch) -> Any:
        rows.append(len(batch.inputs))
        return inner(model, batch)

    monkeypatch.setattr(frozen_pass, "answer_logprobs", counted)
    return rows


def interrupted(config: Recipe, out: Path, first: Path | None, step: int, resume: bool) -> None:
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, out=out, resume=resume, init=None if resume else first, stop=stop):
            if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                stop.set()
    torch.manual_seed(step)  # another process would have other random numbers


@pytest.mark.parametrize("kind", ["adapter", "continued adapter", "full", "average"])
@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_a_resumed_run_equals_an_uninterrupted_one(make, base, name, kind, tmp_path):
    if name != "dpo" and kind != "full":
        pytest.skip("the reference is the same object in all of them")
    keys: dict[str, Any] = {"lora": {**LORA, "dropout": 0.1}} if "adapter" in kind else {}
    keys |= {"ema": 0.9} if kind == "average" else {}
    config = make(name, **keys)
    first = base
    if kind == "continued adapter":
        list(train(make("orpo", budget="2steps", lora=keys["lora"]), out=tmp_path / "first", init=base))
        first = tmp_path / "first"
    list(train(config, out=tmp_path / "whole", init=first))
    for path in (tmp_path / "cache").glob("reference/*"):
        path.unlink()  # as if on another machine
    interrupted(config, tmp_path / "parts", first, 1, resume=False)
    interrupted(config, tmp_path / "parts", first, 3, resume=True)
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_run_killed_at_any_time_resumes_without_loss(make, base, lora, tmp_path):
    config = make(budget="12steps", save_every="1steps", validations=2, lora=lora)
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    list(train(config, out=tmp_path / "whole", init=base))
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
    while not (paths := checkpoints(tmp_path / "parts")) or int(paths[-1].name.removeprefix("step-")) < 4:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_program([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("lora", [LORA, None])
def test_training_moves_the_rewards_and_not_the_reference(make, base, lora, tmp_path):
    config = make({"type": "dpo", "beta": 0.5}, budget="25steps", lora=lora, lr=2e-2, canary=str(tmp_path / "text"))
    events = list(train(config, out=tmp_path / "run", init=base))
    metrics = of(events, Metric)
    first, *_, last = [each.values for each in metrics if each.phase == "train"]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3) and first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["accuracy"] > 0.9 and last["margin"] > 0.3
    assert {"rewards/chosen", "rewards/rejected", "kl", "logps/chosen", "tokens/rejected"} <= last.keys()
    held_out = [each.values for each in metrics if each.phase == "validation"]
    assert held_out[-1]["loss"] < held_out[0]["loss"] and held_out[-1]["accuracy"] > 0.7
    assert held_out[-1]["canary_bits_per_byte"] > 0
    saved = Checkpoint.open(tmp_path / "run", latest=True).training_tensors("objective")
    copied = {name.removeprefix("weights."): each for name, each in saved.items() if name.startswith("weights.")}
    assert bool(copied) == (lora is None)
    before = Checkpoint.open(base).tensors
    assert all(torch.equal(each, before[name]) for name, each in copied.items())


def test_a_run_with_another_beta_computes_no_reference_again(make, base, count_rows, tmp_path):
    list(train(make(), out=tmp_path / "one", init=base))
    assert sum(count_rows) == 2 * 20  # each row once: training reads 5 x 4 of 16 pairs, validation the others
    count_rows.clear()
    (file,) = (tmp_path / "cache" / "reference").iterdir()
    list(train(make({"type": "dpo", "beta": 0.7}), out=tmp_path / "two", init=base))
    assert not count_rows
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    list(train(make(), out=tmp_path / "three", init=base))
    assert sum(count_rows) == 2 * 20
    assert_same(tmp_path / "one", tmp_path / "three")
    count_rows.clear()
    other = make(model={"width": 32})
    list(train(other, out=tmp_path / "four"))
    assert sum(count_rows) == 2 * 20 and len(list((tmp_path / "cache" / "reference").iterdir())) == 2


def test_kto_reads_preferences_as_ratings(make, base, tmp_path):
    events = list(train(make("kto", lora=LORA), out=tmp_path / "run", init=base))
    values = of(events, Metric)[-1].values
    assert values["kl"] >= 0 and {"rewards/chosen", "rewards/rejected", "accuracy"} <= values.keys()


def test_rows_without_a_difference_or_an_answer_are_skipped_and_counted(make, base, tmp_path):
    config = make(budget="1steps")
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a", "chosen": "same", "rejected": "same"}) + "\n")
        file.write(json.dumps({"prompt": "a", "chosen": "one", "rejected": ""}) + "\n")
    notices = [each.message for each in of(list(train(config, out=tmp_path / "run", init=base)), Notice)]
    assert any("2 of 22 rows are skipped" in each for each in notices)
    assert any("pairs.jsonl, line 21" in each and "the same" in each for each in notices)
    assert any("pairs.jsonl, line 22" in each for each in notices)


def test_kto_of_one_row_a_batch_is_an_error(make, base, tmp_path):
    with pytest.raises(InputError, match="a batch has one"):
        list(train(make("kto", batch=1, micro_batch=1), out=tmp_path / "run", init=base))
    assert not (tmp_path / "run").exists()


def test_a_pass_of_the_reference_leaves_the_model_as_it_is() -> None:
    model = model_of("delta")
    objective = ready("dpo", model)
    before = objective.reference.logprobs(model, pairs())
    perturb(model)
    now = {name: (each.data_ptr(), each.detach().clone()) for name, each in model.named_parameters()}
    model.train()
    random = torch.get_rng_state()
    again = objective.reference.logprobs(model, pairs(), store=False)
    assert torch.equal(before, again) and torch.equal(random, torch.get_rng_state()) and model.training
    for name, each in model.named_parameters():
        assert (each.data_ptr() == now[name][0]) and torch.equal(each, now[name][1])
    with pytest.raises(RuntimeError, match="stopped"), objective.reference.applied(model):
        raise RuntimeError("stopped")
    assert all(torch.equal(each, now[name][1]) for name, each in model.named_parameters())


def test_a_reference_loaded_is_the_one_saved() -> None:
    model = model_of()
    objective = ready("dpo", model)
    values = objective.reference.logprobs(model, pairs())
    saved = {name: each.clone() for name, each in objective.tensors().items()}
    perturb(model)
    other = Reference()
    other.load(saved)
    other.begin(objective.setup)
    assert torch.equal(other.logprobs(model, pairs(), store=False), values)


def test_the_folder_of_references_is_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "reference"
    for number in range(MAX_FILES + 3):
        cache = ReferenceCache(f"{number:032x}")
        cache.write({bytes(16): float(number)})
        os.utime(cache.path, (number, number))
    ReferenceCache("f" * 32).write({bytes(16): 1.0})
    assert len(list(folder.iterdir())) == MAX_FILES
    assert ReferenceCache(f"{0:032x}").read() == {} and ReferenceCache("f" * 32).read() == {bytes(16): 1.0}


def test_two_processes_add_to_one_file() -> None:
    one, other = ReferenceCache("a" * 32), ReferenceCache("a" * 32)
    assert one.read() == other.read() == {}
    one.write({b"1" * 16: 1.0})
    other.write({b"2" * 16: 2.0})
    assert ReferenceCache("a" * 32).read() == {b"1" * 16: 1.0, b"2" * 16: 2.0}
