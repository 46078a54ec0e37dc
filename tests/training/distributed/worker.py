"""A process of a test: `python -m tests.training.distributed.worker RANK SIZE FOLDER` trains every job of FOLDER.

FOLDER/jobs.json is a list of {recipe, out, init, resume, stop, traffic}, where stop is the step after which it is
stopped, and traffic whether to count what is sent. The
processes meet by a file in FOLDER, so no port is needed beforehand. What a job ends with, a result or an error, goes to
FOLDER/results-RANK.json.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import traceback
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from synthe_core.data.document_text import read_document
from synthe_core.errors import SyntheError
from synthe_core.events import Metric, Result
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import step, train
from synthe_core.training.distributed.ranks import SINGLE, ProcessRanks, Ranks
from synthe_core.training.documents.cache import PassageSettings, material_path
from synthe_core.training.documents.material import MaterialSettings
from tests.training.distributed.traffic import CountedTraffic
from tests.training.distributed.variants import ANSWERS

TIMEOUT = timedelta(seconds=120)


def fill_disk(rank: int, job: dict[str, Any]) -> None:
    """On the job's rank, the disk takes no more shards after some."""
    full = job.get("full_disk")
    if full is None or full["rank"] != rank:
        return
    write, left = HuggingFaceStorageWriter.write_data, [full["after"]]

    def fails(self: Any, *arguments: Any) -> Any:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return write(self, *arguments)

    HuggingFaceStorageWriter.write_data = fails  # type: ignore[method-assign]


def limit_memory(job: dict[str, Any]) -> None:
    """Memory runs out with as many rows as the job says."""
    real = step.accumulate_gradients

    def passes(objective: Any, model: Any, batch: Any, settings: Any, **rest: Any) -> Any:
        if settings.micro_batch >= job.get("too_many_rows", math.inf):
            raise MemoryError
        return real(objective, model, batch, settings, **rest)

    step.accumulate_gradients = passes  # type: ignore[assignment]


def write_material(recipe: Recipe, base: Path | None, ranks: Ranks) -> None:
    """The answers that a document is learnt from, where the model itself would write some."""
    config: Any = recipe.objective
    if base is not None and config is not None and config.type == "document" and ranks.leads:
        cut, settings = PassageSettings(config.passage, config.overlap), MaterialSettings(seed=recipe.seed)
        path = material_path(read_document(Path(config.document)), Checkpoint.open(base), cut, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))
    ranks.meet()


def run(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What a job ends with."""
    init = None if job.get("init") is None else Path(job["init"])
    try:
        recipe = Recipe.model_validate(job["recipe"])
        write_material(recipe, init, ranks)
        fill_disk(ranks.rank, job)
        limit_memory(job)
        stop = Event()
        events = train(recipe, out=Path(job["out"]), init=init, resume=job.get("resume", False), stop=stop, ranks=ranks)
        for event in events:
            if isinstance(event, Metric) and event.step >= job.get("stop", math.inf) and ranks.rank == ranks.size - 1:
                stop.set()  # only the last process is to stop
            if isinstance(event, Result):
                return {"values": event.values}
    except SyntheError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception:
        return {"crash": traceback.format_exc()}
    raise AssertionError("no result")


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if size > 1:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    ranks: Ranks = ProcessRanks() if size > 1 else SINGLE
    results = []
    for job in json.loads((folder / "jobs.json").read_text()):
        traffic = CountedTraffic() if job.get("traffic") else None
        with traffic or nullcontext():
            results.append(run(job, ranks))
        if traffic is not None:
            results[-1]["sent"] = dict(traffic.sent)
        (folder / f"results-{rank}.json").write_text(json.dumps(results))
        if "crash" in results[-1]:
            break
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
