"""A swarm whose specialists learn in seconds, and pairs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.swarm.feedback.pairs import Pairs, PairSource, PairState
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.opening import open_store, pair_limits
from synthe_core.swarm.spec import SpecialistSpec
from tests.adapters.conftest import base, saved  # noqa: F401
from tests.swarm.test_team import set_keys

TEXT = "the river runs to the sea and comes again as rain on hills that remember every stone. " * 40
KEYS = {
    "min_pairs": "10",
    "epochs": "8",
    "lr": "0.02",
    "rank": "4",
    "sequence": "128",
    "canary": "canary.txt",
    "idle_seconds": "0",
    "max_canary_increase": "0.2",
    "max_task_loss": "0.5",  # of a model that answers by chance
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SYNTHE_CACHE", str(cache))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def team(base: Path, tmp_path: Path) -> SwarmFolder:  # noqa: F811
    """A specialist with an adapter, one without, and settings with which both learn quickly."""
    swarm = SwarmFolder.create(tmp_path / "team", str(base))
    adapter = saved(tmp_path / "adapter", base, {"rank": 4}).path
    swarm.add("python", SpecialistSpec(capabilities=["python"], prompt="You write Python."), str(adapter))
    swarm.add("maths", SpecialistSpec(capabilities=["arithmetic"], prompt="You count."))
    (swarm.path / "canary.txt").write_text(TEXT)
    return set_keys(swarm, **KEYS)


@pytest.fixture
def opened(team: SwarmFolder) -> Iterator[tuple[Pairs, LearnedPairs]]:
    """The pairs of the team, and which of them were learned."""
    store = open_store(team)
    pairs = Pairs(store, pair_limits(team))
    yield pairs, LearnedPairs(store, pairs)
    store.close()


Row = tuple[str, str, str]


def rows(numbers: Iterable[int], *, flipped: bool = False) -> list[Row]:
    """Prompts with a better and a worse answer, whose preference can be seen from the answer alone."""
    made = []
    for number in numbers:
        sides = f"It is {number + 1}.", f"No idea {'at all ' * (number % 3)}about it."
        chosen, rejected = reversed(sides) if flipped else sides
        made.append((f"What comes after {number}?", chosen, rejected))
    return made


def approve(pairs: Pairs, given: Iterable[Row], specialist: str = "maths", user: str = "ann") -> list[int]:
    """Adds pairs and approves them; returns their ids."""
    ids = []
    for prompt, chosen, rejected in given:
        pair = pairs.add(user, prompt, chosen, rejected, source=PairSource.IMPORTED, specialist=specialist)
        ids.append(pairs.review(pair.id, PairState.APPROVED, "reviewer").id)
    return ids


Learn = Callable[..., list[dict[str, Any]]]
