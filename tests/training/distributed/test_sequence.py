"""Processes that have the tokens of a sequence together give the numbers of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthe_core.errors import InputError
from synthe_core.recipe.schema import Recipe
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.distributed.sequence import check_sequence
from tests.training.distributed.conftest import Runs
from tests.training.distributed.test_equal_numbers import assert_equal_checkpoints, assert_equal_curves
from tests.training.distributed.variants import RECURRENT, Variants

SHORT = ["delta", "attention"]


def test_two_processes_with_parts_of_a_sequence(short_runs: Runs) -> None:
    one, several = short_runs("one", SHORT), short_runs("two parts", SHORT)
    for name in SHORT:
        assert_equal_curves(one[name], several[name])
        assert_equal_checkpoints(one[name], several[name])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["two parts", "four parts", "two copies of two parts", "two shards of two parts"])
@pytest.mark.parametrize("name", RECURRENT)
def test_fifty_steps(name: str, mesh: str, long_runs: Runs) -> None:
    one, several = long_runs("one", list(RECURRENT)), long_runs(mesh, list(RECURRENT))
    assert_equal_curves(one[name], several[name])
    assert_equal_checkpoints(one[name], several[name])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": {"sequence": 30}}, "does not divide sequences of 30 tokens"),
    ({"carry": True}, "the state after a row is on another process"),
    ({"stages": [{"until": 0.5, "sequence": 2}]}, "does not divide sequences of 2 tokens"),
    ({"objective": {"type": "distill", "teacher": "x"}}, "distill reads whole rows"),
    ({"model": {"width": 16, "blocks": 4, "depth": {}, "block": [{"type": "momentum"}]}}, "a depth router chooses"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_what_cannot_be_cut_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(Variants(tmp_path).recipe(**keys))
    check_sequence(recipe, Mesh(4, 1))
    with pytest.raises(InputError, match=message):
        check_sequence(recipe, Mesh(1, 1, 4))
