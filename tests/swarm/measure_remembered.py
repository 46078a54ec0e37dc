"""Measures what a remembered state saves: `python -m tests.swarm.measure_remembered`.

A specialist of SmolLM2-135M-Instruct (Q4_1) with the page docs/guide/swarm.md as its document: an answer of 16 tokens
from its remembered state and one for which the text is read, in turns; opening the swarm with the file and without.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from synthe_core.swarm.events import Answered
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.remembered_states import state_path
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.team import Swarm, SwarmRequest, open_swarm
from tests.paths import ROOT, SHARED

TURNS, NAME = 3, "manual"


def answered(swarm: Swarm) -> tuple[float, Answered]:
    """The seconds of an answer, and the answer."""
    message = {"role": "user", "content": "Who decides which specialist answers?"}
    began = time.perf_counter()
    *_, end = swarm.answer(SwarmRequest([message], specialist=NAME, max_tokens=16, sampling={"temperature": 0}))
    assert isinstance(end, Answered)
    return time.perf_counter() - began, end


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        base = next((SHARED / "models" / "smollm2-135m-instruct").glob("*.gguf"))
        folder = SwarmFolder.create(Path(scratch) / "team", str(base))
        values: dict[str, Any] = {"prompt": "You know the manual.", "documents": [str(ROOT / "docs/guide/swarm.md")]}
        folder.add(NAME, SpecialistSpec(**values))
        seconds: dict[str, list[float]] = {"remembers": [], "reads": []}
        for opened in ("read", "from the file"):
            began = time.perf_counter()
            with open_swarm(folder, cache_bytes=0) as swarm:
                print(f"opened, the text {opened}: {time.perf_counter() - began:.1f} s")
                state = swarm.remembered.get(NAME)
                assert state is not None and state.was_read == (opened == "read")
                for _ in range(TURNS if opened != "read" else 0):
                    taken, first = answered(swarm)
                    seconds["remembers"].append(taken)
                    swarm.remembered.forget([NAME])
                    taken, second = answered(swarm)
                    seconds["reads"].append(taken)
                    assert first.text == second.text and second.num_cached_tokens == 0
                    swarm.follow_adapters()  # pins the file again
        size = state_path(folder.path, NAME).stat().st_size
        print(f"{state.tokens:,} tokens, a file of {size / 2**20:.0f} MiB; the same text from both")
        for name, taken in seconds.items():
            print(f"{name}: {statistics.median(taken):.2f} s an answer ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main()
