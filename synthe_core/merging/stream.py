"""Jobs run on threads, their results in order, never more in memory than a budget allows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from synthe_core.errors import Interrupted
from synthe_core.hardware.probe import probe
from synthe_core.merging.hashed_file import Facts

BUDGET = 512 * 2**20
"""Bytes that jobs under way may hold together; a job that is larger runs alone."""


@dataclass(frozen=True)
class Job:
    """One tensor of the result: what it will be, how it is made, and about how many bytes making it takes."""

    name: str
    facts: Facts
    make: Callable[[], Tensor]
    bytes: int


def run(
    jobs: Iterable[Job], threads: int | None = None, stop: threading.Event | None = None, budget: int = BUDGET
) -> Iterator[tuple[Job, Tensor]]:
    """Every job with its result, in the order given, so that what is written does not hang on the threads.

    torch works on one thread within each: its sums depend on how many it uses. threads: all cores by default.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    waiting: deque[tuple[Job, Future[Tensor]]] = deque()
    held = 0
    queue = iter(jobs)
    following = next(queue, None)
    pool = ThreadPoolExecutor(
        threads or probe().cores, thread_name_prefix="merge", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        while following is not None or waiting:
            while following is not None and (not waiting or held + following.bytes <= budget):
                waiting.append((following, pool.submit(_one, following)))
                held += following.bytes
                following = next(queue, None)
            job, future = waiting.popleft()
            result = future.result()
            if stop is not None and stop.is_set():
                raise Interrupted("interrupted: nothing was written")
            yield job, result
            held -= job.bytes
            del result, future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _one(job: Job) -> Tensor:
    with torch.no_grad():
        result = job.make()
    if result.shape != job.facts.shape:
        raise AssertionError(f"{job.name} became {list(result.shape)}, planned {list(job.facts.shape)}")
    return result.to(job.facts.dtype).contiguous()
