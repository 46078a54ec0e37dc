"""A program that writes turns, corrections and pairs, and prints the number of each turn once it is committed.

python -m tests.swarm.knowledge.crash_writer LOCATION USER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import count

from synthe_core.swarm.feedback.pairs import Pairs, PairSource
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.store import Store
from tests.swarm.writer import location_of


def main(path: str, user: str, report: Callable[[object], object] = partial(print, flush=True)) -> None:
    store = Store(location_of(path))
    knowledge, pairs = Knowledge(store), Pairs(store)
    for number in count():
        with store.transaction():
            knowledge.record_turn(user, "c", "user", f"I live in town {number}. I like {user} thing {number}.")
            pairs.add(user, f"{user} question {number}", "good", "bad", source=PairSource.CORRECTION)
        report(number)


if __name__ == "__main__":
    main(*sys.argv[1:])
