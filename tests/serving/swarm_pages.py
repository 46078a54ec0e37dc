"""A swarm to look at in the dashboard: its base writes HTML and a sentence that is wrong, and its data are hostile."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from synthe_core.data.tokenizers import FileTokenizer
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from synthe_core.swarm.answers import Answer
from synthe_core.swarm.feedback.pairs import Pairs, PairSource
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.fact import Claim, Source
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.learning.plan import Plan
from synthe_core.swarm.learning.promotion import Promotions
from synthe_core.swarm.models import load_models
from synthe_core.swarm.spawning.proposals import Proposal, Proposals
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.team import Swarm
from tests.adapters.conftest import saved as saved_adapter
from tests.evaluation.models import saved
from tests.serving.browser import Browser
from tests.swarm.test_team import OPTIONS, set_keys

IMAGE = "<img src=x onerror=window.hit=1>"
WRONG = "The capital of France is Lyon."
WORDS = [*(f"{IMAGE} é𝄞{'!' * n} " for n in range(1, 4)), *(f"{WRONG} It has {n} bridges. " for n in range(2, 24)), "?"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def sentences() -> FileTokenizer:
    """Tokens that are whole sentences: most of them say that Lyon is the capital of France."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "isolated")
    made = FileTokenizer(inner, "sentences")
    made.chat_template = TEMPLATE
    return made


def team(path: Path) -> SwarmFolder:
    """Three specialists, one of them with an adapter; all answer together."""
    base = saved(path / "base", tokenizer=sentences())
    swarm = SwarmFolder.create(path / "team", str(base))
    hostile = {"description": f"{IMAGE} writes code", "prompt": "You write Python."}
    swarm.add("python", SpecialistSpec(capabilities=["python", f"{IMAGE} debugging"], **hostile))
    swarm.add("maths", SpecialistSpec(capabilities=["arithmetic", "algebra"], prompt="You count."))
    swarm.add("history-of-long-names-in-use", SpecialistSpec(capabilities=["wars", "kings"], prompt="You know."))
    return set_keys(swarm, margin="1", threshold="0", explore="0", max_specialists="3", min_pairs="2")


RATED = (
    (("python",), "python", (1, 1, 1, 0, 1, 1)),
    (("python", "maths"), "algebra", (1, 1, 0, 1)),
    (("maths",), "arithmetic", (1, 0, 0)),
    (("maths", "history-of-long-names-in-use"), f"{IMAGE} debugging", (0, 1)),
)
FACTS = (
    ("Ada", "works at", "the office"),
    ("the office", "opens at", "9:00"),
    ("the office", "located in", "Vienna"),
    ("Vienna", "capital of", "Austria"),
    ("Austria", "part of", "Europe"),
    ("Bob", "works at", "the office"),
    (IMAGE, "is", IMAGE),
)


def populate(swarm: Swarm, adapters: Path) -> None:
    """Ratings, facts with a history, pairs to review, learned versions and a refusal, proposals."""
    names = itertools.count()
    for members, domain, successes in RATED:
        for success in successes:
            answer = Answer(f"rated-{next(names)}", "", "", "request", "text", members, members[0], domain, 0.6)
            swarm.record.answers.add(answer)
            swarm.record.rate(answer.id, success)
    knowledge = swarm.recollection.knowledge
    for each in FACTS:
        knowledge.add("", *each)
    for town in ("Graz", "Linz"):
        knowledge.add("", "Bob", "lives in", town)
    knowledge.facts.add("", Claim("the cellar", "holds", "gold", negated=True), Source.STATEMENT, trusted=False)
    pairs = Pairs(swarm.store)
    for number in range(4):
        prompt, better = f"What comes after {number}? {IMAGE}", f"It is {number + 1}.\n{IMAGE}"
        pairs.add("", prompt, better, f"No idea {IMAGE}.", source=PairSource.CORRECTION, specialist="maths")
    learn(swarm, pairs, adapters)
    for name in ("tax", "roses"):
        proposal = Proposal(0, "base", name, (name, IMAGE), f"You are an expert on {IMAGE}.", 20, 30.0)
        Proposals(swarm.folder, swarm.store).add(proposal, np.ones(4))


def figures(before: float, after: float, bits: float) -> dict[str, Any]:
    """What the gate measured."""
    held_out = {"pairs": 10, "wins": 0.8, "accuracy": {"before": before, "after": after}, "margin": {}}
    tasks = {"questions": 20, "accuracy": {"before": 0.4, "after": 0.45}}
    canary = {"before": 1.9, "after": bits}
    return {"held_out": held_out, "earlier": None, "canary_bits_per_byte": canary, "tasks": tasks}


def learn(swarm: Swarm, pairs: Pairs, adapters: Path) -> None:
    """Two promotions of one specialist and a refusal between them."""
    folder, base = swarm.folder, swarm.folder.path.parent / "base"
    promotions = Promotions(folder, LearnedPairs(swarm.store, pairs))
    for number, (before, after, bits) in enumerate(((0.5, 0.7, 1.92), (0.7, 0.4, 2.4), (0.7, 0.9, 1.91))):
        plan = Plan("maths", folder.versions("maths").current, (), (), (), ())
        if after < before:
            promotions.refuse(plan, "d" * 64, figures(before, after, bits), [f"it is worse {IMAGE}"])
        else:
            path = saved_adapter(adapters / str(number), base, {"rank": 3}, seed=number).path
            promotions.promote(plan, path, base, figures(before, after, bits))
    swarm.follow_adapters()


@contextmanager
def opened(folder: SwarmFolder) -> Iterator[Swarm]:
    """The swarm of a folder, on an engine of its own."""
    with AsyncEngine(load_models(folder), **OPTIONS) as engine:
        made = Swarm(folder, engine)
        yield made
        made.close()


@contextmanager
def served(swarm: Swarm, chromium: Browser) -> Iterator[Server]:
    """A server of the swarm, which the browser leaves at the end."""
    with Server(swarm.engine, Settings(keyless_role="admin"), swarm=swarm) as server:
        yield server
        chromium.call("Page.navigate", url="about:blank")


def texts(page: Browser, selector: str) -> list[str]:
    return list(page.do(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"))
