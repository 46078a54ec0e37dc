"""Peak memory and time of merging large models, against copying as many bytes.

    python -m tests.merging.measure FOLDER [--gigabytes 1] [--models 4] [--turns 5] [--cold]

Makes random Hugging Face folders in FOLDER (once), merges them, and prints the peak of this process and the ratio of a
merge's time to that of reading the same files and writing and syncing one of the result's size, turn by turn in one
process.
`--cold` drops the files from the system's memory before each turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from synthe_core.benchmarks.paired import paired
from synthe_core.profiling.peak_memory import peak_bytes
from tests.merging.models import CONFIG, folder, llama, moved, run

CHUNK = 8 * 2**20


def make(at: Path, gigabytes: float, models: int) -> list[Path]:
    """Models of `gigabytes` each in float32: the first is the base of the others."""
    width = 1024
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * 16384 * width) / (15 * width**2)))
    config = CONFIG | {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 16384,
    }
    paths = [at / f"model-{number}" for number in range(models)]
    for number, path in enumerate(paths):
        if not (path / "model.safetensors").exists():
            tensors = llama(config)
            folder(path, moved(tensors, number) if number else tensors, config)
    return paths


def copy(paths: list[Path], out: Path) -> None:
    """Reads every file and writes one of the size of the first, to the disk."""
    buffer = bytearray(CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    left = paths[0].stat().st_size
    with out.open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(memoryview(buffer)[: min(CHUNK, left)])
        os.fsync(file.fileno())
    out.unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    with ProcessPoolExecutor(1) as apart:  # so that what making them takes is not counted
        paths = apart.submit(make, args.folder, args.gigabytes, args.models).result()
    files, out = [path / "model.safetensors" for path in paths], args.folder / "out"

    def fresh(work: Callable[[], object]) -> Callable[[], None]:
        def go() -> None:
            shutil.rmtree(out, ignore_errors=True)
            if args.cold:
                for file in files:
                    handle = os.open(file, os.O_RDONLY)
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(handle)
            work()

        return go

    def merging(method: str, hashes: bool = True, **values: float) -> Callable[[], None]:
        models, base = (paths, None) if method == "linear" else (paths[1:], paths[0])
        more = {"parameters": values, "hashes": hashes, "threads": args.threads}
        return fresh(lambda: run(out, method, models, base, **more))

    cases = {
        "copy": fresh(lambda: copy(files, args.folder / "copy")),
        "linear": merging("linear"),
        "linear, no hashes": merging("linear", hashes=False),
        "ties, density 0.2": merging("ties", density=0.2),
        "ties, no hashes": merging("ties", hashes=False, density=0.2),
    }
    for name in ("linear", "ties, density 0.2"):
        torch.set_num_threads(1)
        peak = peak_bytes(cases[name])
        print(f"{name}: peak {(peak or 0) / 1e9:.2f} GB", flush=True)
    result = paired(cases, args.turns)
    for name, ratio in result.ratios.items():
        print(f"{name}: median {result.timings[name].median:.2f} s, {ratio:.2f} x copying", flush=True)
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
