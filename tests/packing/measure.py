"""Figures for RESULTS.md: python -m tests.packing.measure CHECKPOINT

How long the packed file takes to load against the folder, in pairs; and the most memory that each verb holds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from synthe_core.packing.pack import pack
from synthe_core.packing.unpack import unpack
from synthe_core.packing.verify import verify
from synthe_core.profiling.peak_memory import peak_bytes
from synthe_core.storage.checkpoint import Checkpoint

TURNS = 7


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak(what: str, work: Callable[[], object]) -> None:
    before = psutil.Process().memory_info().rss
    after = peak_bytes(work)
    grown = "unknown" if after is None else f"{(after - before) / 1e6:,.0f} MB over {before / 1e6:,.0f}"
    print(f"{what}: {grown}")


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "packed.synapse"
        for what, work in (
            ("pack", lambda: list(pack(folder, file))),
            ("verify", lambda: list(verify(file))),
            ("unpack", lambda: list(unpack(file, Path(scratch) / "out"))),
        ):
            peak(what, work)
        pairs = []
        for _ in range(TURNS):
            pairs.append(tuple(seconds(lambda path=path: Checkpoint.open(path).model()) for path in (folder, file)))
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        ratio = statistics.median(packed / unpacked for unpacked, packed in pairs)
        print(f"load: folder {medians[0]:.2f} s, file {medians[1]:.2f} s, file / folder {ratio:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
