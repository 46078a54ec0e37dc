"""The memory of one of several processes: what it holds exactly, and the peak of its step within ten percent."""

from __future__ import annotations

import pytest

from synthe_cli.commands.profile_mesh import with_mesh
from synthe_core.errors import InputError
from synthe_core.hardware.probe import probe
from synthe_core.profiling.footprint import Estimate
from synthe_core.profiling.sharded import measure_in_shards, mesh_of, training_in_shards
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint.recipe import load_recipe
from tests.paths import ROOT

WITHIN = 0.1
TINY = ["runtime.device=cpu", "runtime.precision=float32", "runtime.threads=1", "data.sequence=64"]


def tiny(*changes: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / "tiny.yaml", [*TINY, *changes])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "rows", "changes"),
    [
        ("shard=2", 2, ["train.batch=16"]),
        ("shard=4", 2, ["train.batch=8"]),
        ("replicate=2,shard=2", 1, ["train.batch=4", "train.optimizer=adamw", "data.sequence=128"]),
        ("shard=2", 2, ["train.batch=8", "model.width=384", "model.blocks=6"]),
        ("shard=4", 2, ["train.batch=8", "model.width=384", "model.blocks=4", "train.optimizer=adamw"]),
    ],
)
def test_the_prediction_is_what_processes_take(mesh: str, rows: int, changes: list[str]) -> None:
    recipe = with_mesh(tiny(*changes), mesh)
    predicted = training_in_shards(Estimate(recipe, probe()), rows)
    held = measure_in_shards(recipe, rows=rows, length=predicted.length, precision="float32")
    assert held.parameters == predicted.parts["parameters"]
    assert held.optimizer == pytest.approx(predicted.parts["optimizer"], rel=1e-3)  # steps are counted too
    assert held.peak == pytest.approx(predicted.peak, rel=WITHIN)


def test_shards_take_their_share_and_what_is_whole_does_not() -> None:
    recipe = tiny("train.batch=16")
    one = training_in_shards(Estimate(with_mesh(recipe, "shard=1"), probe()), 2)
    four = training_in_shards(Estimate(with_mesh(recipe, "shard=4"), probe()), 2)
    assert one.parts["parameters"] == pytest.approx(4 * four.parts["parameters"], rel=0.01)
    assert one.parts["optimizer"] == pytest.approx(4 * four.parts["optimizer"], rel=0.01)
    assert four.parts["activations"] > one.parts["activations"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shad=2", "unknown part of a mesh 'shad'"),
        ("shard=0", "shard is a number of processes, not '0'"),
        ("shard=x", "shard is a number of processes, not 'x'"),
    ],
)
def test_a_mesh_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_mesh(tiny(), text)


def test_a_mesh_must_divide_the_batch() -> None:
    with pytest.raises(InputError, match=r"train\.batch 16 does not divide over 3 processes"):
        mesh_of(with_mesh(tiny(), "shard=3"))
