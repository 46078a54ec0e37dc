"""Training an adapter: the model under it stays as it is, and all that holds of training holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Event as Stop

import pytest
import torch
from safetensors.torch import load_file

from synthe_core.adapters.lora_linear import attach
from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.events import Metric, Notice
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import recipe_from_checkpoint, train
from tests.training.conftest import assert_same, of

LORA = {"rank": 4, "targets": ["attention", "mlp"]}
KALMAN = {"block": [{"type": "kalman"}, {"type": "mlp", "hidden": 32}], "blocks": 2, "width": 16}
VARIANTS = {
    "muon": {},
    "adamw": {"optimizer": "adamw", "lora": {"rank": 3, "dropout": 0.2, "rslora": True, "targets": "qkv"}},
    "average": {"ema": 0.9},
    "carried": {"carry": True, "lora": {**LORA, "dropout": 0.1}},
    "recomputed": {"runtime": {"recompute": True}, "lora": {**LORA, "dropout": 0.1}},
    "bfloat16": {"runtime": {"precision": "bfloat16"}},
}


@pytest.fixture
def base(recipe, tmp_path) -> Path:
    list(train(recipe(budget="2steps", validations=1), out=tmp_path / "base"))
    return tmp_path / "base"


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, base, name, tmp_path):
    config = recipe(**{"lora": LORA, **VARIANTS[name]})
    before = contents(base)
    list(train(config, out=tmp_path / "whole", init=base))
    for step in (1, 4):
        stop = Stop()
        with pytest.raises(Interrupted, match=f"stopped at step {step}; saved"):
            first = None if step > 1 else base
            for event in train(config, out=tmp_path / "parts", resume=step > 1, init=first, stop=stop):
                if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                    stop.set()
        torch.manual_seed(step)  # another process would have other random numbers
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert contents(base) == before


def test_a_checkpoint_contains_only_the_adapter(recipe, base, tmp_path):
    events = list(train(recipe(lora=LORA, optimizer="adamw"), out=tmp_path / "run", init=base))
    folder = checkpoints(tmp_path / "run")[-1]
    model = Checkpoint.open(base).model()
    maps = [f"blocks.{b}.learners.{place}" for b in (0, 1) for place in ("0.qkv", "0.out", "1.gate_up", "1.out")]
    names = {f"{name}.{factor}.weight" for name in maps for factor in ("lora_A", "lora_B")}
    stored = load_file(folder / "adapter_model.safetensors")
    assert set(stored) == {f"base_model.model.{name}" for name in names}
    optimizer = load_file(folder / "training" / "optimizer.safetensors")
    assert {name.split(".", 2)[2] for name in optimizer} == names
    assert not list(folder.rglob("model.safetensors")) and not list(folder.rglob("tokenizer.json"))

    opened = Checkpoint.open(folder)
    count = sum(tensor.numel() for tensor in stored.values())
    assert opened.manifest.kind == "adapter" and opened.manifest.parameters == count
    assert any(f"of which {count:,}" in notice.message for notice in of(events, Notice))
    assert opened.manifest.base.path == "../../../" + str(checkpoints(base)[-1].relative_to(tmp_path))
    assert opened.tokenizer().digest == Checkpoint.open(base).tokenizer().digest
    attach(model, opened.adapter)
    tokens = torch.randint(257, (2, 30))
    with torch.no_grad():
        assert not torch.equal(model(tokens)[0], Checkpoint.open(base).model()(tokens)[0])
        torch.testing.assert_close(opened.model()(tokens)[0], model(tokens)[0], rtol=1e-5, atol=1e-5)


def test_its_figures_are_those_of_the_checkpoint(recipe, base, tmp_path):
    """What validation saw while training is what the checkpoint is, adapted matrices being added in."""
    config = recipe(lora=LORA, ema=0.5, lr=5e-2)
    list(train(config, out=tmp_path / "run", init=base))
    metrics = Checkpoint.open(tmp_path / "run", latest=True).manifest.metrics
    again = recipe(budget="1steps", lr=1e-12, validations=1, weight_decay=0.0)
    list(train(again, out=tmp_path / "check", init=checkpoints(tmp_path / "run")[-1]))
    assert Checkpoint.open(tmp_path / "check").manifest.metrics["loss"] == pytest.approx(metrics["loss"], abs=1e-5)


@pytest.mark.slow
def test_it_learns_another_text(recipe, text, tmp_path):
    """Most of what training every weight gains, on a base that knows a text of the same words."""
    list(train(recipe(budget="150steps", validations=1, lr=2e-2), out=tmp_path / "base"))
    (tmp_path / "other.txt").write_text("hills run to rain and stone again comes as every river " * 400)
    other = {"budget": "40steps", "lr": 2e-2, "data": {"sources": str(tmp_path / "other.txt")}}
    loss = {}
    for name, lora in (("adapter", {"rank": 4}), ("all", None)):
        events = list(train(recipe(**other, lora=lora), out=tmp_path / name, init=tmp_path / "base"))
        losses = [event.values["loss"] for event in of(events, Metric) if event.phase == "train"]
        first, loss[name] = losses[0], losses[-1]
    assert loss["all"] < first - 0.5
    assert first - loss["adapter"] > 0.5 * (first - loss["all"])


def test_an_adapter_is_trained_further_or_into_the_weights(recipe, base, tmp_path):
    list(train(recipe(lora=LORA), out=tmp_path / "first", init=base))
    first = Checkpoint.open(tmp_path / "first")
    still = {"budget": "1steps", "lr": 1e-12, "validations": 1, "weight_decay": 0.0, "optimizer": "adamw"}
    list(train(recipe(lora=LORA, **still), out=tmp_path / "second", init=tmp_path / "first"))
    second = Checkpoint.open(tmp_path / "second")
    assert second.base.path.resolve() == first.base.path.resolve() and second.manifest.parents == [str(first.path)]
    for name, tensor in first.adapter.tensors.items():
        torch.testing.assert_close(second.adapter.tensors[name], tensor, rtol=0, atol=1e-9)
    list(train(recipe(**still), out=tmp_path / "whole", init=tmp_path / "first"))
    whole = Checkpoint.open(tmp_path / "whole")
    assert whole.adapter is None and set(whole.tensors) == set(first.tensors)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(tensor, first.tensors[name], rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="other rank, scale or targets"):
        list(train(recipe(lora={**LORA, "rank": 5}), out=tmp_path / "third", init=tmp_path / "first"))


def test_thresholds_of_the_base_are_unchanged(recipe, tmp_path):
    """A buffer that training moves belongs to the base, which others share."""
    model = {**KALMAN, "depth": {"min": 1, "target": 0.5}}
    list(train(recipe(model=model), out=tmp_path / "base"))
    base = Checkpoint.open(tmp_path / "base")
    assert torch.isfinite(base.tensors["router.thresholds"]).all()
    list(train(recipe(model=model, lora={"rank": 2}), out=tmp_path / "run", init=tmp_path / "base"))
    tensors = Checkpoint.open(tmp_path / "run").tensors
    assert torch.equal(tensors["router.thresholds"], base.tensors["router.thresholds"])
    assert not torch.equal(tensors["blocks.1.learners.1.out.weight"], base.tensors["blocks.1.learners.1.out.weight"])


def test_an_encoder_keeps_its_classes(recipe, text, tmp_path):
    for kind in ("a", "b"):
        (text / kind).mkdir()
        for path in sorted(text.glob("*.txt"))[:8]:
            (text / kind / path.name).write_text(f"{kind * 5} {path.read_text()[:200]}")
            path.unlink()
    model = {"head": {"type": "classify", "classes": 2}}
    labelled = {"model": model, "data": {"labels": "path"}}
    list(train(recipe(**labelled), out=tmp_path / "base"))
    list(
        train(
            recipe(**labelled, lora={"rank": 2, "targets": "all-linear"}), out=tmp_path / "run", init=tmp_path / "base"
        )
    )
    assert Checkpoint.open(tmp_path / "run").classes == ["a", "b"]
    assert Checkpoint.open(tmp_path / "run").classifier()(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 2)
    shutil.move(text / "b", text / "c")
    with pytest.raises(InputError, match="other classes than"):
        list(train(recipe(**labelled, lora={"rank": 2}), out=tmp_path / "other", init=tmp_path / "base"))


def test_errors_are_named(recipe, base, tmp_path):
    config = recipe(lora=LORA, patience=2, lr=1e30, clip=None, optimizer="adamw", budget="20steps")
    with pytest.raises(WorkError, match="not finite"):
        list(train(config, out=tmp_path / "run", init=base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"width": 32}}, r"has another: model.width: 16 -> 32"),
        ({"lora": {"targets": "mpl"}}, "unknown target 'mpl'"),
        ({"lora": {"targets": ["mlp", "head"]}}, "head shares its matrix"),
    ],
)
def test_an_invalid_adapter_is_refused_before_any_work(recipe, base, change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        next(iter(train(recipe(**{"lora": LORA} | change), out=tmp_path / "run", init=base)))
    assert not (tmp_path / "run").exists()


def test_an_adapter_needs_a_model(recipe, tmp_path):
    with pytest.raises(InputError, match="needs a model to adapt"):
        next(iter(train(recipe(lora=LORA), out=tmp_path / "run")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe(lora=LORA).to_yaml())  # killed before its first checkpoint
    with pytest.raises(InputError, match="needs a model to adapt"):
        next(iter(train(recipe(lora=LORA), out=tmp_path / "run", resume=True)))


def test_another_rank_is_another_run(recipe, base, tmp_path):
    list(train(recipe(lora=LORA), out=tmp_path / "run", init=base))
    with pytest.raises(InputError, match=r"cannot be resumed with another train: train.lora.rank: 4 -> 8"):
        list(train(recipe(lora={**LORA, "rank": 8}), out=tmp_path / "run", resume=True))


def test_a_moved_base(recipe, base, tmp_path):
    list(train(recipe(lora=LORA), out=tmp_path / "run", init=base))
    expected = {name: tensor.clone() for name, tensor in Checkpoint.open(tmp_path / "run").tensors.items()}
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "run"):  # together: nothing is lost
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    run, moved = tmp_path / "elsewhere" / "run", tmp_path / "moved"
    assert all(torch.equal(t, expected[name]) for name, t in Checkpoint.open(run).tensors.items())
    (tmp_path / "elsewhere" / "base").rename(moved)
    with pytest.raises(
        InputError, match=r"is an adapter of is not there: .*elsewhere/base/checkpoints/step-00000002"
    ) as gone:
        _ = Checkpoint.open(run).tensors
    assert "base.path" in gone.value.hint and "--adapter" in gone.value.hint
    assert all(torch.equal(t, expected[name]) for name, t in Checkpoint.open(run, base=moved).tensors.items())
    manifest = checkpoints(run)[-1] / "manifest.json"  # as the hint says
    facts = json.loads(manifest.read_text())
    facts["base"]["path"] = str(moved)
    manifest.write_text(json.dumps(facts))
    assert set(Checkpoint.open(run).tensors) == set(expected)


def test_another_model_is_no_base(recipe, base, tmp_path):
    list(train(recipe(lora=LORA), out=tmp_path / "run", init=base))
    list(train(recipe(budget="1steps", validations=1), out=tmp_path / "twin"))
    for other, message in ((tmp_path / "twin", "its weights are others"), (tmp_path / "run", "is an adapter itself")):
        with pytest.raises(InputError, match=message):
            _ = Checkpoint.open(tmp_path / "run", base=other).tensors
    with pytest.raises(InputError, match="a model of its own"):
        Checkpoint.open(base, base=tmp_path / "twin")


def test_the_recipe_of_a_checkpoint_omits_stages_and_keeps_the_tokenizer(recipe, base, tmp_path):
    own = recipe_from_checkpoint(base, ["train.lr=5e-3"])
    assert own.train.lr == 5e-3 and own.model == recipe().model and own.data.tokenizer.type == "bytes"
    list(train(recipe(lora=LORA, stages=[{"until": 0.5, "sequence": 8}]), out=tmp_path / "run", init=base))
    again = recipe_from_checkpoint(tmp_path / "run").train
    assert again.lora.rank == 4 and again.stages == []
    assert recipe_from_checkpoint(tmp_path / "run", ["train.stages=[{until: 0.2}]"]).train.stages[0].until == 0.2
