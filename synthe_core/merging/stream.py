"""Running jobs on threads within a memory budget, with their results in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from synthe_core.errors import InputError, Interrupted
from synthe_core.hardware.probe import probe
from synthe_core.merging.buffers import BUFFERS
from synthe_core.merging.hashed_file import TensorInfo

BUDGET = 512 * 2**20
"""Bytes of all running jobs together; a larger job runs alone."""


@dataclass(frozen=True)
class Job:
    """One tensor of the result: its shape and type, the function that computes it, and about how many bytes that
    takes.
    """

    name: str
    info: TensorInfo
    compute: Callable[[], Tensor]
    bytes: int


def run(
    jobs: Iterable[Job], threads: int | None = None, stop: threading.Event | None = None, budget: int = BUDGET
) -> Iterator[tuple[Job, Tensor]]:
    """Yields every job with its result in the order of `jobs`, whatever the number of threads (all cores by default).

    Each job uses one thread of torch, because sums depend on the number of threads.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    running: deque[tuple[Job, Future[Tensor]]] = deque()
    memory = 0
    queue = iter(jobs)
    next_job = next(queue, None)
    pool = ThreadPoolExecutor(
        threads or probe().cores, thread_name_prefix="merge", initializer=torch.set_num_threads, initargs=(1,)
    )
    stack = ExitStack()
    stack.enter_context(BUFFERS.in_use())
    try:
        while next_job is not None or running:
            while next_job is not None and (not running or memory + next_job.bytes <= budget):
                running.append((next_job, pool.submit(_compute, next_job)))
                memory += next_job.bytes
                next_job = next(queue, None)
            job, future = running.popleft()
            result = future.result()
            if stop is not None and stop.is_set():
                raise Interrupted("interrupted: nothing was written")
            yield job, result
            memory -= job.bytes
            del result, future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        stack.close()
        torch.set_num_threads(threads_before)


def _compute(job: Job) -> Tensor:
    with torch.no_grad():
        result = job.compute()
    if result.shape != job.info.shape:
        raise AssertionError(f"{job.name} has shape {list(result.shape)}, planned {list(job.info.shape)}")
    stored = result.to(job.info.dtype).contiguous()
    if job.info.floats and not torch.isfinite(stored.sum(dtype=torch.promote_types(stored.dtype, torch.float32))):
        _require_finite(job, result, stored)
    return stored


def _require_finite(job: Job, result: Tensor, stored: Tensor) -> None:
    """InputError for a tensor of finite numbers that its type in the result cannot hold."""
    if torch.isfinite(stored).all():
        return
    name = str(job.info.dtype).removeprefix("torch.")
    if not torch.isfinite(result).all():
        raise InputError(f"the merged {job.name} is not finite", "smaller weights, or another method")
    raise InputError(
        f"{job.name} has numbers up to {result.abs().max():.6g}, and {name} holds at most "
        f"{torch.finfo(job.info.dtype).max:.6g}",
        f"write the result as --dtype {'bfloat16 or float32' if job.info.dtype == torch.float16 else 'float64'}",
    )
