"""Many clients at once: no error, no lost fact, no other user's fact, whatever is written beside them."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from synthe_core.swarm.answers import Answer
from synthe_core.swarm.feedback.feedback import Feedback
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.store import Store
from tests.paths import ROOT
from tests.processes import start
from tests.swarm.measure_load import measure

LOADS = [(8, 20), pytest.param((64, 50), marks=pytest.mark.slow)]


def client(store: Store, number: int, requests: int) -> int:
    """One user's requests: a fact that is new, one that is corrected each time, an answer and its rating."""
    knowledge, feedback, user = Knowledge(store), Feedback(store), f"user{number}"
    for each in range(requests):
        knowledge.record_turn(user, "c", "user", f"I like {user}fruit{each}. I live in {user}town{each}.")
        (town,) = knowledge.retrieve(user, "Where do I live?", 500)
        assert (town.user, town.object) == (user, f"{user}town{each}")
        liked = knowledge.retrieve(user, f"{user}fruit{each} or user{number + 1}fruit0", 500)
        assert [fact.object for fact in liked] == [f"{user}fruit{each}"]
        answer = f"{user}-{each}"
        feedback.answers.add(Answer(answer, user, "c", f"{user} {each}?", "no", ("base",), "base", "d", 0.5))
        feedback.rate(answer, each % 2, user)
        if each % 10 == 0:
            feedback.correct(answer, "yes", user)
    return requests


@pytest.mark.parametrize("load", LOADS)
def test_clients_lose_nothing_and_see_only_their_own(tmp_path: Path, load: tuple[int, int]) -> None:
    clients, requests = load
    store = Store(tmp_path / "swarm.db")
    Knowledge(store), Feedback(store)
    with Beside(store.path), ThreadPoolExecutor(clients) as pool:
        done = list(pool.map(lambda number: client(store, number, requests), range(clients)))
    assert done == [requests] * clients
    knowledge, feedback = Knowledge(store), Feedback(store)
    for number in range(clients):
        user = f"user{number}"
        facts = knowledge.facts.current(user)
        likes = [fact.object for fact in facts if fact.predicate == "likes"]
        assert likes == [f"{user}fruit{each}" for each in range(requests)]
        assert len(knowledge.facts.history(user, "user", "lives in")) == requests
        assert len(feedback.pairs(user=user)) == -(-requests // 10)
    assert not store.faults()


@pytest.mark.parametrize("load", [(6, 6), pytest.param((64, 40), marks=pytest.mark.slow)])
def test_answers_under_load_lose_nothing(tmp_path: Path, monkeypatch, load: tuple[int, int]) -> None:
    """The large load is beside learning, which takes its time; `tests.swarm.measure_load` has a larger one."""
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        happened = measure(tmp_path, *load, learn=load[0] > 6)
    finally:
        torch.set_num_threads(threads)
    assert (happened["answers"], happened["faults"], happened["lost"]) == (load[0] * load[1], {}, {})


class Beside:
    """Another process that writes to the database all the while, as learning does."""

    def __init__(self, path: Path) -> None:
        self._command = [sys.executable, "-m", "tests.swarm.knowledge.crash_writer", path, "another"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> None:
        # the large load takes longer than a program may by default, on a busy machine
        self._process = start(self._command, limit=3600.0, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline()
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.poll() is None
        self._process.kill()
        self._process.wait()
