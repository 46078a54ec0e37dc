"""Measures the learning loop: `python -m tests.swarm.measure_learning --team team`.

A specialist on SmolLM2 gets preference pairs of dpo_en_demo.json, the shortest first: a batch that is learned, one
whose sides are swapped, and a way back. Prints what the gate measured, seconds, and whether the bits came back.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.events import Metric, Notice, drain
from synthe_core.swarm.feedback.pairs import Pairs, PairSource, PairState
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.learn import learn, roll_back
from synthe_core.swarm.opening import open_store, pair_limits
from synthe_core.swarm.spec import SpecialistSpec
from tests.paths import SHARED
from tests.swarm.test_team import set_keys

NAME = "helper"


def single_turns() -> list[tuple[str, str, str]]:
    """The pairs with one request before the answers, the shortest first: prompt, chosen, rejected."""
    rows = json.loads((SHARED / "data" / "preference" / "dpo_en_demo.json").read_text(encoding="utf-8"))
    turns = [each for each in rows if len(each["conversations"]) == 1]
    made = [(each["conversations"][0]["value"], each["chosen"]["value"], each["rejected"]["value"]) for each in turns]
    return sorted((each for each in made if all(text.strip() for text in each)), key=lambda each: sum(map(len, each)))


def new_team(path: Path, **changes: Any) -> SwarmFolder:
    """A swarm of one specialist on SmolLM2. changes: keys of `learning`."""
    base = next((SHARED / "models" / "smollm2-135m-instruct").glob("*.gguf"))
    folder = SwarmFolder.create(path, os.path.abspath(base))
    folder.add(NAME, SpecialistSpec.model_validate({"capabilities": "help", "prompt": "You are a helpful assistant."}))
    return set_keys(folder, **{"batch": 4, **changes})


def approve(folder: SwarmFolder, rows: list[tuple[str, str, str]]) -> None:
    store = open_store(folder)
    pairs = Pairs(store, pair_limits(folder))
    for prompt, chosen, rejected in rows:
        pair = pairs.add("measure", prompt, chosen, rejected, source=PairSource.IMPORTED, specialist=NAME)
        try:
            pairs.review(pair.id, PairState.APPROVED, "measure")
        except InputError as error:  # the data have a prompt twice, and its other pair is approved
            print(f"  not approved: {error.message}", flush=True)
    store.close()


def learned(folder: SwarmFolder) -> dict[str, Any]:
    """What came of the pairs that wait, and how long it took."""

    def show(event: Any) -> None:
        if isinstance(event, Notice):
            print(f"  {event.message}", flush=True)
        elif isinstance(event, Metric) and event.phase == "validation":
            figures = {
                key: round(event.values[key], 4) for key in ("loss", "accuracy", "margin") if key in event.values
            }
            print(f"  step {event.step}: {figures}", flush=True)

    began = time.perf_counter()
    result = drain(learn(folder, now=True), show)
    (outcome,) = result.values["outcomes"]  # type: ignore[misc]
    print(f"{outcome['event']} after {time.perf_counter() - began:.0f} s: {json.dumps(outcome)}", flush=True)
    return dict(outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--team", type=Path, required=True, help="a new folder")
    parser.add_argument("--pairs", type=int, default=60, help="of each batch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", default="1e-4")
    parser.add_argument("--sequence", type=int, default=512)
    options = parser.parse_args()
    folder = new_team(options.team, epochs=options.epochs, lr=options.lr, sequence=options.sequence, min_pairs=10)
    rows = single_turns()
    first, second = rows[: 2 * options.pairs : 2], rows[1 : 2 * options.pairs : 2]
    approve(folder, first)
    good = learned(folder)
    before = folder.versions(NAME).digest(folder.versions(NAME).current)
    approve(folder, [(prompt, rejected, chosen) for prompt, chosen, rejected in second])
    learned(folder)
    after = folder.versions(NAME).digest(folder.versions(NAME).current)
    print(f"the swapped batch left the adapter as it was: {before == after}")
    if good["event"] == "promoted":
        print(f"rolled back to {roll_back(folder, NAME)['adapter']}")


if __name__ == "__main__":
    main()
