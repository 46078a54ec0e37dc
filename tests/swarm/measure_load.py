"""Measures a swarm under many clients while it learns: `python -m tests.swarm.measure_load --clients 64`.

Every request says two facts, of which one takes the place of the fact before, and is answered by a small base with
random weights. Some answers are rated and corrected; corrections are approved all the while, and a process learns from
them, again and again. At the end every fact, answer, turn and pair is counted, for each user.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.model.language_model import LanguageModel
from synthe_core.storage.checkpoint import save, weights
from synthe_core.storage.manifest import Manifest
from synthe_core.swarm.events import Answered, Routed
from synthe_core.swarm.feedback.pairs import PairState
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.background import BackgroundLearning
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.team import Swarm, SwarmRequest, open_swarm
from synthe_core.swarm.watcher import Watcher
from tests.adapters.conftest import recipe_with, saved
from tests.swarm.learning.conftest import KEYS, TEXT
from tests.swarm.test_team import set_keys

OPTIONS: dict[str, Any] = {"max_state_bytes": 1 << 28, "cache_bytes": 1 << 24, "max_waiting": 1024}
OWN = re.compile(r"user(\d+)(?:fruit|town)")


def new_team(path: Path) -> SwarmFolder:
    """A swarm of three specialists on a small base, which learn in seconds."""
    torch.manual_seed(0)
    tensors = weights(LanguageModel(recipe_with().model, 257))
    facts: dict[str, Any] = {"manifest": Manifest(), "tokenizer": ByteTokenizer()}
    save(path / "base", recipe=recipe_with(), vocab=257, tensors=tensors, **facts)
    folder = SwarmFolder.create(path / "team", str(path / "base"))
    adapter = saved(path / "adapter", path / "base", {"rank": 4}).path
    folder.add("python", SpecialistSpec(capabilities=["python"], prompt="You write."), str(adapter))
    folder.add("maths", SpecialistSpec(capabilities=["arithmetic", "numbers"], prompt="You count."))
    folder.add("history", SpecialistSpec(capabilities=["wars", "kings"], prompt="You know."))
    (folder.path / "canary.txt").write_text(TEXT)
    return set_keys(folder, **KEYS)


def client(swarm: Swarm, number: int, requests: int, deadline: float, faults: Counter[str]) -> tuple[int, int]:
    """One user's requests; returns how many were answered, and how many answers were corrected."""
    user, done, corrected = f"user{number}", 0, 0
    for each in range(requests):
        if time.monotonic() > deadline:
            break
        text = f"I like {user}fruit{each}. I live in {user}town{each}. What is {each} plus {number}?"
        request = SwarmRequest(
            [{"role": "user", "content": text}], user=user, conversation="c", max_tokens=4, seed=each
        )  # fmt: skip
        try:
            routed, *_, end = swarm.answer(request)
            assert isinstance(routed, Routed) and isinstance(end, Answered)
            done += 1
            if any(int(named) != number for fact in routed.facts for named in OWN.findall(fact)):
                faults["another user's fact"] += 1
            if each % 5 == 0:
                swarm.rate(end.answer_id, each % 2, user=user)
            if each % 10 == 0 and end.text.strip():  # the base can end at once, and nothing is no rejected answer
                swarm.feedback.correct(end.answer_id, f"It is {each + number}.", user)
                corrected += 1
        except Exception as error:  # every one of them is what is measured
            faults[f"{type(error).__name__}: {error}"[:200]] += 1
    return done, corrected


def review(swarm: Swarm, stop: threading.Event) -> None:
    """Approves corrections, and wants them learned, until the clients have ended."""
    while not stop.wait(1.0):
        for pair in swarm.feedback.pairs(state=PairState.NEW)[:200]:
            swarm.feedback.review(pair.id, PairState.APPROVED, "reviewer")
        swarm.learning_wanted.set()


def count_lost(swarm: Swarm, done: list[tuple[int, int]]) -> Counter[str]:
    """What is not there, or there twice, of what every user has said."""
    lost, knowledge = Counter[str](), swarm.recollection.knowledge
    for number, (requests, corrected) in enumerate(done):
        user = f"user{number}"
        likes = [fact.object for fact in knowledge.facts.current(user) if fact.predicate == "likes"]
        towns = knowledge.facts.history(user, "user", "lives in")
        lost["facts"] += likes != [f"{user}fruit{each}" for each in range(requests)]
        lost["histories"] += [fact.object for fact in towns] != [f"{user}town{each}" for each in range(requests)]
        lost["current"] += sum(fact.is_current for fact in towns) != min(1, requests)
        lost["turns"] += len(knowledge.conversations.turns(user, "c")) != 2 * requests
        lost["pairs"] += len(swarm.feedback.pairs(user=user)) != corrected
    lost["answers"] += swarm.record.answers.count() != sum(requests for requests, _ in done)
    lost["database"] += len(swarm.store.faults())
    return +lost


def measure(path: Path, clients: int, requests: int, seconds: float = 1e9, *, learn: bool = True) -> dict[str, Any]:
    """What happened: answers, their rate, errors and other users' facts, what was lost, and what was learned."""
    folder, faults, stop = new_team(path), Counter[str](), threading.Event()
    with open_swarm(folder, max_num_seqs=64, **OPTIONS) as swarm:
        began = time.monotonic()
        with Watcher(swarm, BackgroundLearning(folder, swarm.store)), ThreadPoolExecutor(clients + 1) as pool:
            reviewer = pool.submit(review, swarm, stop) if learn else None
            work = [pool.submit(client, swarm, n, requests, began + seconds, faults) for n in range(clients)]
            done = [each.result() for each in work]
            taken = time.monotonic() - began
            stop.set()
            if reviewer is not None:
                reviewer.result()
        lost, answers = count_lost(swarm, done), sum(requests for requests, _ in done)
    events = Counter(each["event"] for each in folder.ledger() if each["event"] != "added")
    return {
        "answers": answers,
        "seconds": round(taken, 1),
        "answers_a_second": round(answers / taken, 1),
        "faults": dict(faults),
        "lost": dict(lost),
        "learning": dict(events),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=500, help="of each client")
    parser.add_argument("--seconds", type=float, default=1200.0, help="after which no client begins another one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(Path(scratch), options.clients, options.requests, options.seconds), indent=1))


if __name__ == "__main__":
    main()
