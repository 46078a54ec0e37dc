"""The verb `merge extract-lora`: what a model has learnt beyond its base, as a LoRA adapter of a given rank."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.merging import output, stream
from synthe_core.merging.adapters import Both, describe
from synthe_core.merging.factors import factored
from synthe_core.merging.hashed_file import Facts
from synthe_core.merging.inputs import open_input
from synthe_core.merging.inputs.adapter import PREFIX, Adapter
from synthe_core.merging.inputs.model import Model
from synthe_core.merging.plan import LISTED, compare, of_one_kind, read
from synthe_core.merging.stream import Job
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.run_folder import new_run

EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe)\.weight$")
"""Modules whose factors PEFT stores in an embedding's layout."""


def extract_lora(
    base: str,
    tuned: str,
    *,
    rank: int,
    out: Path | None = None,
    targets: tuple[str, ...] = (),
    rest: bool = False,
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """Writes the adapter that is nearest to `tuned` - `base` and yields events; the last is a Result with its path.

    targets: only matrices whose name holds one of these; all that changed by default.
    rest:    whether what changed and is no matrix (or no target) goes into the adapter as a whole.

    Each difference is cut to its `rank` largest singular values. "kept" in the result is the share of all the squared
    difference that the adapter holds.
    """
    if rank < 1:
        raise InputError(f"rank {rank} is below 1", "16 is a usual rank")
    ground, model = (open_input(text) for text in (base, tuned))
    for each in (ground, model):
        if isinstance(each, Adapter):
            raise InputError(f"{each.named} is an adapter", "it is what extract-lora makes: name two models")
    of_one_kind([ground, model])
    for text in compare(ground, [model], whole=True):
        yield Notice(text, "warning")
    path = new_run(f"{model.name}-lora", out)
    names = [name for name in ground.tensors if ground.tensors[name].floats]
    matrices = [name for name in names if len(ground.tensors[name].shape) == 2 and name.endswith(".weight")]
    chosen = {name for name in matrices if not targets or any(part in name for part in targets)}
    if not chosen:
        raise InputError(f"no matrix's name holds {' or '.join(targets)}", f"one is called {matrices[0]}")
    total = sum(ground.tensors[name].nbytes for name in names)
    made = Measured(ground, model)
    changed, done = [], 0
    for name in names:
        if stop is not None and stop.is_set():
            raise Interrupted("interrupted: nothing was written")
        if made.measure(name):
            changed.append(name)
        done += ground.tensors[name].nbytes
        yield Progress("compare", done, total, "bytes")
    if not changed:
        raise InputError(f"{tuned} is the same as {base}", "there is nothing to extract")
    inside, outside = ([n for n in changed if (n in chosen) is wanted] for wanted in (True, False))
    jobs = [job for name in inside for job in _jobs(name, ground.tensors[name], made, rank)]
    if rest:
        jobs += [made.whole(name) for name in outside]
    elif outside:
        more = f" and {len(outside) - LISTED} more" if len(outside) > LISTED else ""
        yield Notice(f"not in the adapter: {', '.join(outside[:LISTED])}{more}; --with-rest keeps them", "warning")
    if not jobs:
        raise InputError("nothing that changed is a matrix", "--with-rest keeps the rest as a whole")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(name.removesuffix(".weight") for name in inside),
    }
    if ranks := {n.removesuffix(".weight"): r for n in inside if (r := min(rank, *ground.tensors[n].shape)) < rank}:
        config |= {"rank_pattern": ranks, "alpha_pattern": ranks}
    if rest and outside:
        config["modules_to_save"] = sorted({name.rpartition(".")[0] or name for name in outside})
    with new_folder(path) as folder:
        known: dict[str, FileDigest] = {}
        size = sum(job.facts.nbytes for job in jobs)
        results = stream.run(jobs, threads, stop)
        for written in output.write(folder, "adapter_model", [jobs], results, known):
            yield Progress("extract", written, size, "bytes")
        parents = [each.facts() for each in (ground, model)]
        describe(folder, config, parents, {"method": "extract-lora", "rank": rank}, known)
    kept = made.kept(inside, outside if rest else [])
    size = known["adapter_model.safetensors"].bytes
    yield Result({"modules": len(inside), "rank": rank, "kept": kept, "bytes": size}, path)


class Measured:
    """The differences of two models, and how much of each an adapter holds."""

    def __init__(self, base: Model, tuned: Model) -> None:
        self._base, self._tuned = base, tuned
        self._squares: dict[str, float] = {}
        self._held: dict[str, float] = {}

    def measure(self, name: str) -> bool:
        """Whether the tensor differs."""
        self._squares[name] = float(self._difference(name).double().square().sum())
        return self._squares[name] > 0

    def factors(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        matrix = self._difference(name)
        down, up = factored(matrix.T if EMBEDDING.search(name) else matrix, rank)
        self._held[name] = float(up.double().square().sum())  # its columns' norms are the singular values
        return down, up

    def whole(self, name: str) -> Job:
        facts = self._tuned.tensors[name]
        return Job(PREFIX + name, facts, lambda: self._tuned.read(name), facts.nbytes)

    def kept(self, factored: list[str], whole: list[str]) -> float:
        """The share of the squared difference that is in the adapter."""
        held = sum(self._held[name] for name in factored) + sum(self._squares[name] for name in whole)
        return held / sum(self._squares.values())

    def _difference(self, name: str) -> Tensor:
        return read(self._tuned, name, torch.float32) - read(self._base, name, torch.float32)


def _jobs(name: str, facts: Facts, made: Measured, rank: int) -> list[Job]:
    rows, columns = facts.shape
    down, up = "lora_A.weight", "lora_B.weight"
    if EMBEDDING.search(name):
        rows, columns, down, up = columns, rows, "lora_embedding_A", "lora_embedding_B"
    kept = min(rank, rows, columns)
    both = Both(lambda: made.factors(name, kept))
    path = PREFIX + name.removesuffix(".weight")
    return [
        Job(f"{path}.{down}", Facts((kept, columns), torch.float32), both.first, facts.numel * 4 * 6),
        Job(f"{path}.{up}", Facts((rows, kept), torch.float32), both.second, 0),
    ]
