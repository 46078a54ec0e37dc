"""The objective: stages of one run, exact when resumed, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice
from synthe_core.hardware.probe import cache_dir
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import train
from synthe_core.training.distillation import prediction_cache
from synthe_core.training.distillation.student import with_student
from synthe_core.training.distillation.teacher import Teacher
from tests.training.conftest import assert_same, of

Make = Callable[..., Recipe]
ATTENTION = {"type": "attention", "heads": 2, "kv_heads": 1, "qk_norm": False}
MODEL = {"width": 16, "blocks": 4, "block": [ATTENTION, {"type": "mlp", "hidden": 32}]}
GLA = {"type": "gla", "gate": False}


@pytest.fixture
def teacher(recipe: Make, tmp_path: Path) -> Path:
    list(train(recipe(model=MODEL, budget="20steps"), out=tmp_path / "teacher"))
    return tmp_path / "teacher"


@pytest.fixture
def student(recipe: Make, teacher: Path, text: Path) -> Callable[..., Recipe]:
    def make(
        learner: dict[str, Any] | None = None, keep: Any = 0.0, data: Any = None, runtime: Any = None, **keys: Any
    ) -> Recipe:
        values = recipe(data=data, runtime=runtime, budget="12steps", lr=3e-3, optimizer="adamw").model_dump(
            mode="json", exclude_unset=True
        )
        values |= {
            "name": "student",
            "model": {"from_teacher": {"learner": learner or GLA, "keep": keep}},
            "objective": {"type": "distill", "teacher": str(teacher), **keys},
        }
        return Recipe.model_validate(values)

    return make


def metrics(run: Path, phase: str = "train") -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == phase]


def test_three_stages_are_one_run(student: Any, tmp_path: Path) -> None:
    recipe = student(stages={"orientation": 0.25, "alignment": 0.25})
    events = list(train(recipe, out=tmp_path / "run"))
    notices = [notice.message for notice in of(events, Notice)]
    begun = [text.partition(":")[0] for text in notices if text.startswith(("orient", "align", "distillation"))]
    assert begun == ["orientation", "alignment", "distillation"]
    steps = metrics(tmp_path / "run")
    figures = [next(k for k in ("orientation", "alignment", "kl") if k in step) for step in steps]
    assert figures == ["orientation"] * 3 + ["alignment"] * 3 + ["kl"] * 6
    assert all("bits_per_byte" not in step for step in steps)
    validation = metrics(tmp_path / "run", "validation")[-1]
    assert {"kl", "perplexity", "teacher_perplexity", "bits_per_byte"} <= validation.keys()
    run = Checkpoint.open(tmp_path / "run")
    assert run.recipe.model.learners_of(0)[0].type == "gla"
    assert run.manifest.parents[0].startswith(str(tmp_path / "teacher"))
    assert torch.isfinite(run.model()(torch.zeros(1, 4, dtype=torch.int64))[0]).all()


def test_only_learners_in_the_place_of_attention_change_in_the_first_stages(student: Any, tmp_path: Path) -> None:
    recipe = student(keep=[1], stages={"orientation": 0.4, "alignment": 0.55})
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(recipe, out=tmp_path / "run", stop=stop):
            if isinstance(event, Metric) and event.step == 8:
                stop.set()
    run, first = Checkpoint.open(tmp_path / "run", latest=True), Checkpoint.open(tmp_path / "teacher")
    for name in run.tensors:
        inside = ".learners.0." in name and not name.startswith("blocks.1.")
        if not inside:
            assert torch.equal(run.tensors[name], first.tensors[name]), name
    torch.manual_seed(0)
    begun = _begun(recipe, tmp_path)
    for name, before in begun.items():
        if name.endswith("project.weight"):
            assert not torch.equal(run.tensors[name], before), name


def _begun(recipe: Recipe, tmp_path: Path) -> dict[str, torch.Tensor]:
    from synthe_core.model.classifier import build_model
    from synthe_core.storage.checkpoint import weights
    from synthe_core.training.objectives import objective_for

    recipe = with_student(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, 257)
    objective_for(recipe.model, recipe.objective).initialise(model)
    return weights(model)


def test_the_last_stage_has_a_learning_rate_of_its_own(student: Any, tmp_path: Path) -> None:
    recipe = student(stages={"orientation": 0.25, "alignment": 0.25, "rate": 0.1})
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values["train"] |= {"schedule": "linear", "warmup": 0.0, "final": 0.99}
    list(train(Recipe.model_validate(values), out=tmp_path / "run"))
    rates = [step["lr"] / 3e-3 for step in metrics(tmp_path / "run")]
    assert rates[:6] == pytest.approx([1.0] * 6, rel=0.02)
    assert rates[6] == pytest.approx(0.001, rel=0.02)  # it rises
    assert rates[7:] == pytest.approx([0.1] * 5, rel=0.02)


@pytest.mark.parametrize(
    "keys",
    [
        {"stages": {"orientation": 0.3, "alignment": 0.3}},
        {"stages": {"orientation": 0, "alignment": 0.5}, "divergence": "reverse", "temperature": 2.0, "top_k": 5},
        {"top_k": 9, "cache": True, "cross_entropy": 0.5},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(student: Any, keys: dict[str, Any], tmp_path: Path) -> None:
    recipe = student(keep=0.25, **keys)
    list(train(recipe, out=tmp_path / "whole"))
    for step in (2, 6, 9):  # within each stage
        stop = Stop()
        with pytest.raises(Interrupted):
            for event in train(recipe, out=tmp_path / "parts", resume=step > 2, stop=stop):
                if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                    stop.set()
        torch.manual_seed(step)
    list(train(Recipe.load(tmp_path / "parts"), out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    losses = [[(m["step"], m["loss"]) for m in metrics(tmp_path / run)] for run in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_the_cut_into_micro_batches_changes_nothing(student: Any, tmp_path: Path) -> None:
    for rows in (1, 4):
        values = student().model_dump(mode="json", exclude_unset=True)
        values["train"]["micro_batch"] = rows
        list(train(Recipe.model_validate(values), out=tmp_path / str(rows)))
    one, four = (metrics(tmp_path / name) for name in ("1", "4"))
    for a, b in zip(one, four, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-2)


def test_a_cached_teacher_is_the_live_one(student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"top_k": 9, "stages": {"orientation": 0, "alignment": 0}}
    list(train(student(**keys), out=tmp_path / "live"))
    list(train(student(**keys, cache=True), out=tmp_path / "first"))
    stored = list((cache_dir() / "distillation").rglob("*.safetensors"))
    assert stored
    calls: list[int] = []
    original = prediction_cache.PredictionCache._write

    def counted(*arguments: Any) -> None:
        calls.append(1)
        original(*arguments)

    monkeypatch.setattr(prediction_cache.PredictionCache, "_write", counted)
    stored[0].write_bytes(b"damaged")
    list(train(student(**keys, cache=True), out=tmp_path / "second"))
    assert len(calls) == 1  # the damaged one
    live, first, second = ([m["loss"] for m in metrics(tmp_path / run)] for run in ("live", "first", "second"))
    assert first == pytest.approx(live, rel=1e-5)
    assert first == second


def test_a_student_with_all_attention_is_the_teacher(student: Any, tmp_path: Path) -> None:
    events = list(train(student(keep=1.0), out=tmp_path / "run"))
    assert any("0 of its layers are replaced" in notice.message for notice in of(events, Notice))
    assert all("kl" in step for step in metrics(tmp_path / "run"))
    assert metrics(tmp_path / "run")[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_model_is_the_teachers_but_for_its_attention(student: Any, teacher: Path) -> None:
    recipe = with_student(student({"type": "mamba2", "norm": "none", "expand": 1}, keep=0.5))
    kinds = [recipe.model.learners_of(block) for block in range(4)]
    assert [kind[0].type for kind in kinds] == ["mamba2", "attention", "mamba2", "attention"]
    assert len(recipe.model.kinds) == 2
    mamba2 = kinds[0][0]
    assert (mamba2.heads, mamba2.head_size, mamba2.state_size, mamba2.groups) == (2, 8, 8, 2)
    assert recipe.model.width == 16
    assert with_student(recipe) is recipe
    assert recipe.data.tokenizer.type == "bytes"


@pytest.fixture
def other(recipe: Make, tmp_path: Path) -> Iterator[Path]:
    """A model of the same shape with a tokenizer of its own."""
    list(train(recipe(model=MODEL, data={"tokenizer": {"type": "bpe", "vocab": 300}}), out=tmp_path / "other"))
    yield tmp_path / "other"


def test_a_teacher_with_another_vocabulary_is_refused_in_one_line(student: Any, other: Path, tmp_path: Path) -> None:
    recipe = student(data={"tokenizer": "bytes"})
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values["objective"]["teacher"] = str(other)
    with pytest.raises(InputError, match=r"tokenizer of the teacher .*other.* is another than the text's") as failed:
        list(train(Recipe.model_validate(values), out=tmp_path / "run"))
    assert "\n" not in failed.value.message
    assert not (tmp_path / "run").exists()
    assert Teacher(str(other)).vocab == 300


@pytest.mark.parametrize(
    "change,message",
    [
        ({"teacher": None}, "none is named"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"cache": True}, "set top_k"),
        ({"stages": {"orientation": 0.5, "alignment": 0.5}}, "must leave a part"),
    ],
)
def test_bad_keys_are_one_line(student: Any, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = student().model_dump(mode="json", exclude_unset=True)
    values["objective"] |= change
    (tmp_path / "bad.yaml").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        list(train(Recipe.load(tmp_path / "bad.yaml"), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_shape_and_a_teacher_without_attention_are_refused(student: Any, teacher: Path) -> None:
    values = student().model_dump(mode="json", exclude_unset=True)
    wide = values | {"model": MODEL | {"width": 32}}
    with pytest.raises(InputError, match=r"model\.width of the student is 32, and of the teacher 16"):
        list(train(Recipe.model_validate(wide), out=teacher.parent / "run"))
    list(train(student(), out=teacher.parent / "recurrent"))
    values["objective"]["teacher"] = str(teacher.parent / "recurrent")
    with pytest.raises(InputError, match="has no attention"):
        list(train(Recipe.model_validate(values), out=teacher.parent / "run"))


def test_a_carried_state_is_refused(student: Any, tmp_path: Path) -> None:
    values = student().model_dump(mode="json", exclude_unset=True)
    values["train"]["carry"] = True
    (tmp_path / "carried.yaml").write_text(json.dumps(values))
    with pytest.raises(InputError, match="distill begins every row anew"):
        Recipe.load(tmp_path / "carried.yaml")
