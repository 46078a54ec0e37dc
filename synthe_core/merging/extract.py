"""The verb `merge extract-lora`: the difference of a model from its base as a LoRA adapter of a given rank."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.adapters.peft import PREFIX
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.merging import output, stream
from synthe_core.merging.adapters import SharedPair, write_adapter_files
from synthe_core.merging.base_digest import base_metadata
from synthe_core.merging.factors import factored
from synthe_core.merging.hashed_file import TensorInfo
from synthe_core.merging.inputs import fetch_inputs, open_input
from synthe_core.merging.inputs.adapter import Adapter
from synthe_core.merging.inputs.model import Model
from synthe_core.merging.plan import compare, listed, read, require_one_kind
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

    targets: only matrices whose name contains one of these; by default all that changed.
    rest:    also stores other tensors that changed, as a whole.

    Each difference is truncated to its `rank` largest singular values. "retained" in the result is the share of the
    squared difference that the adapter contains.
    """
    if rank < 1:
        raise InputError(f"rank {rank} is below 1", "16 is a usual rank")
    yield from fetch_inputs([base, tuned])
    models = [_open_model(text) for text in (base, tuned)]
    base_model, tuned_model = models
    require_one_kind(models)
    for text in compare(base_model, [tuned_model], whole=True):
        yield Notice(text, "warning")
    with new_run(f"{tuned_model.name}-lora", out) as path:
        yield from _extract(path, (base, tuned), base_model, tuned_model, rank, targets, rest, threads, stop)


def _extract(
    path: Path,
    names: tuple[str, str],
    base_model: Model,
    tuned_model: Model,
    rank: int,
    targets: tuple[str, ...],
    rest: bool,
    threads: int | None,
    stop: threading.Event | None,
) -> Iterator[Event]:
    """Writes the adapter at `path`, which is claimed. names: what the user called the two models."""
    candidates = _candidates(base_model, targets)
    differences = Differences(base_model, tuned_model)
    changed = yield from _measure(differences, base_model, stop)
    if not changed:
        raise InputError(f"{names[1]} is the same as {names[0]}", "there is nothing to extract")
    factored_names = [name for name in changed if name in candidates]
    other_names = [name for name in changed if name not in candidates]
    jobs = [job for name in factored_names for job in _jobs(name, base_model.tensors[name], differences, rank)]
    if rest:
        jobs += [differences.whole(name) for name in other_names]
    elif other_names:
        yield Notice(f"not in the adapter: {listed(other_names)}; --with-rest includes them", "warning")
    if not jobs:
        raise InputError("nothing that changed is a matrix", "--with-rest stores the rest as a whole")
    config = _config(names[0], base_model, rank, factored_names, other_names if rest else [])
    with new_folder(path, claimed=True) as folder:
        digests: dict[str, FileDigest] = {}
        size = sum(job.info.nbytes for job in jobs)
        results = stream.run(jobs, threads, stop)
        for written in output.write(folder, "adapter_model", [jobs], results, digests, base_metadata(base_model.path)):
            yield Progress("extract", written, size, "bytes")
        parents = [each.provenance() for each in (base_model, tuned_model)]
        write_adapter_files(folder, config, parents, {"method": "extract-lora", "rank": rank}, digests)
    retained = differences.retained(factored_names, other_names if rest else [])
    size = digests["adapter_model.safetensors"].bytes
    yield Result({"modules": len(factored_names), "rank": rank, "retained": retained, "bytes": size}, path)


def _open_model(text: str) -> Model:
    model = open_input(text)
    if isinstance(model, Adapter):
        raise InputError(f"{model.named} is an adapter", "it is what extract-lora makes: name two models")
    return model


def _candidates(base: Model, targets: Sequence[str]) -> set[str]:
    """The matrices that may be factored. InputError if no name contains one of `targets`."""
    matrices = [
        name for name, info in base.tensors.items() if info.floats and len(info.shape) == 2 and name.endswith(".weight")
    ]
    chosen = {name for name in matrices if not targets or any(part in name for part in targets)}
    if not chosen:
        raise InputError(f"no matrix's name contains {' or '.join(targets)}", f"one is called {matrices[0]}")
    return chosen


def _measure(differences: Differences, base: Model, stop: threading.Event | None) -> Generator[Event, None, list[str]]:
    """Yields progress; returns the names of the tensors that differ."""
    names = [name for name, info in base.tensors.items() if info.floats]
    total = sum(base.tensors[name].nbytes for name in names)
    changed, done = [], 0
    for name in names:
        if stop is not None and stop.is_set():
            raise Interrupted("interrupted: nothing was written")
        if differences.measure(name):
            changed.append(name)
        done += base.tensors[name].nbytes
        yield Progress("compare", done, total, "bytes")
    return changed


def _config(base: str, model: Model, rank: int, factored_names: Sequence[str], whole: Sequence[str]) -> dict[str, Any]:
    """adapter_config.json: scale 1, lower ranks for smaller matrices, and the tensors stored as a whole."""
    modules = {name: name.removesuffix(".weight") for name in factored_names}
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
        "target_modules": sorted(modules.values()),
    }
    ranks = {module: min(rank, *model.tensors[name].shape) for name, module in modules.items()}
    if lower := {re.escape(module): each for module, each in ranks.items() if each < rank}:
        config |= {"rank_pattern": lower, "alpha_pattern": lower}
    if {*factored_names, *whole} & {*model.tied.values()}:
        config["ensure_weight_tying"] = True  # the base has one matrix in two places, and so has the tuned model
    if whole:
        config["modules_to_save"] = sorted({name.rpartition(".")[0] or name for name in whole})
    return config


class Differences:
    """The differences of two models, and how much of each the adapter contains."""

    def __init__(self, base: Model, tuned: Model) -> None:
        self._base, self._tuned = base, tuned
        self._squares: dict[str, float] = {}
        self._factored_squares: dict[str, float] = {}

    def measure(self, name: str) -> bool:
        """Whether the tensor differs."""
        self._squares[name] = float(self._difference(name).double().square().sum())
        return self._squares[name] > 0

    def factors(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """The factors A and B of a tensor's difference."""
        matrix = self._difference(name)
        down, up = factored(matrix.T if EMBEDDING.search(name) else matrix, rank)
        self._factored_squares[name] = float(up.double().square().sum())  # its columns' norms are the singular values
        return down, up

    def whole(self, name: str) -> Job:
        """The job that stores the tuned tensor itself."""
        info = self._tuned.tensors[name]
        return Job(PREFIX + name, info, lambda: self._tuned.read(name), info.nbytes)

    def retained(self, factored_names: Sequence[str], whole: Sequence[str]) -> float:
        """The share of the squared difference that is in the adapter."""
        squares = [self._factored_squares[name] for name in factored_names] + [self._squares[name] for name in whole]
        return sum(squares) / sum(self._squares.values())

    def _difference(self, name: str) -> Tensor:
        return read(self._tuned, name, torch.float32) - read(self._base, name, torch.float32)


def _jobs(name: str, info: TensorInfo, differences: Differences, rank: int) -> list[Job]:
    rows, columns = info.shape
    down, up = "lora_A.weight", "lora_B.weight"
    if EMBEDDING.search(name):
        rows, columns, down, up = columns, rows, "lora_embedding_A", "lora_embedding_B"
    own_rank = min(rank, rows, columns)
    pair = SharedPair(lambda: differences.factors(name, own_rank))
    path = PREFIX + name.removesuffix(".weight")
    return [
        Job(f"{path}.{down}", TensorInfo((own_rank, columns), torch.float32), pair.first, info.numel * 4 * 6),
        Job(f"{path}.{up}", TensorInfo((rows, own_rank), torch.float32), pair.second, 0),
    ]
