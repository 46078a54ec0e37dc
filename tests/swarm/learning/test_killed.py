"""After a kill at any moment the current adapter is whole, the old one or the new one, and the ledger follows it."""

from __future__ import annotations

import random
from contextlib import contextmanager
from functools import partial

import pytest

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.learning.promotion import PROMOTED, ROLLED_BACK, Promotions
from synthe_core.swarm.opening import open_store, pair_limits
from tests.adapters.conftest import saved
from tests.swarm.killing import run_killed
from tests.swarm.learning.conftest import approve, rows
from tests.swarm.learning.promoter import main


@contextmanager
def opened_pairs(team):
    """The pairs of the team, and which of them were learned; the database is closed when a process is forked."""
    store = open_store(team)
    pairs = Pairs(store, pair_limits(team))
    yield pairs, LearnedPairs(store, pairs)
    assert not store.faults()
    store.close()


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_leave_a_whole_adapter(team, base, tmp_path, kills):
    with opened_pairs(team) as (pairs, _):
        approve(pairs, rows(range(4)))
    paths = [saved(tmp_path / str(seed), base, {"rank": 4}, seed).path for seed in (5, 6)]
    model, chance = LoadedModel.load(base), random.Random(kills)
    factors = [model.read_adapter(path).tensors for path in paths]
    seen = set()
    for number in range(kills):
        # half of the kills at an event of its files, half whenever it is, in a write to the database too
        when = {"at_event": chance.randrange(1, 400)} if number % 2 else {"after": chance.uniform(0.05, 0.5)}
        assert not run_killed(partial(main, str(team.path), str(base), *map(str, paths)), **when)
        current = team.versions("maths").current
        if current is not None:
            tensors = model.read_adapter(team.path / current).tensors
            assert any(all(bool((tensors[n] == f).all()) for n, f in each.items()) for each in factors)
        with opened_pairs(team) as (_, learned):
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
