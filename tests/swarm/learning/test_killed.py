"""After a kill at any moment the current adapter is whole, the old one or the new one, and the ledger follows it."""

from __future__ import annotations

import random
import sys
import time

import pytest

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.swarm.learning.promotion import PROMOTED, ROLLED_BACK, Promotions
from tests.adapters.conftest import saved
from tests.paths import ROOT
from tests.processes import start
from tests.swarm.learning.conftest import approve, rows


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_leave_a_whole_adapter(team, opened, base, tmp_path, kills):
    pairs, learned = opened
    approve(pairs, rows(range(4)))
    paths = [saved(tmp_path / str(seed), base, {"rank": 4}, seed).path for seed in (5, 6)]
    model, chance = LoadedModel.load(base), random.Random(kills)
    factors = [model.read_adapter(path).tensors for path in paths]
    seen = set()
    for _ in range(kills):
        command = [sys.executable, "-m", "tests.swarm.learning.promoter", team.path, base, *paths]
        process = start(command, cwd=ROOT, stdout=-1)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for _ in range(chance.randrange(5)):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.stdout.read()
        process.wait()
        current = team.versions("maths").current
        if current is not None:
            tensors = model.read_adapter(team.path / current).tensors
            assert any(all(bool((tensors[n] == f).all()) for n, f in each.items()) for each in factors)
        promotions = Promotions(team, learned)
        promotions.recover()
        assert team.versions("maths").current == current, "what is current was decided before"
        last = [each for each in team.ledger() if each["event"] in (PROMOTED, ROLLED_BACK)]
        assert (last[-1]["adapter"] if last else None) == current
        if current is not None:
            facts = team.versions("maths").facts(current)
            assert facts is not None and facts.digest == Checkpoint.open(team.path / current, base=base).digest
            assert learned.of("maths", "held_out") == list(facts.held_out)
        named = {each.get("adapter") for each in team.ledger()} | {each.get("undone") for each in team.ledger()}
        assert {each.adapter for each in team.versions("maths").learned()} <= named
        seen.add(current)
    assert len(seen) > 1
    assert not list(team.path.glob("adapters/maths/.*.partial"))
