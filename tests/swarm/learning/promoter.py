"""A program that promotes one of two adapters and rolls back in turns, and prints what is current after each.

python -m tests.swarm.learning.promoter TEAM BASE ADAPTER ADAPTER
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.learning.plan import Plan
from synthe_core.swarm.learning.promotion import Promotions
from synthe_core.swarm.opening import open_store


def main(team: str, base: str, *adapters: str) -> None:
    folder = SwarmFolder(Path(team))
    store = open_store(folder)
    pairs = Pairs(store)
    promotions = Promotions(folder, LearnedPairs(store, pairs))
    promotions.recover()
    print("ready", flush=True)
    for number in count():
        if number % 3 < 2:
            ids = tuple(pair.id for pair in pairs.entries())[:4]
            plan = Plan("maths", folder.versions("maths").current, ids[:3], ids[3:], (), ())
            promotions.promote(plan, Path(adapters[number % 2]), Path(base), {"number": number})
        else:
            promotions.roll_back("maths")
        print(folder.versions("maths").current, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
