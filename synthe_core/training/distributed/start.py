"""Joining the processes that torchrun, or `synthe train --processes`, has started."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch

from synthe_core.errors import InputError, Interrupted, OutOfMemory, SyntheError, WorkError
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.recipe.differences import differences
from synthe_core.recipe.schema import Recipe
from synthe_core.training.distributed.ranks import SINGLE, ProcessRanks, Ranks

FAILURE = "synthe/failure"
"""The key of the store under which the first process that fails says why."""
NOTICED = 2.0
"""Seconds in which the others notice that a process has failed, and ask why."""
PATIENCE = 8.0
"""Seconds in which rank 0 ends by itself after that."""
RESTARTS = "SYNTHE_RESTARTS"
"""The variable in which `launch` counts them."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
UNREACHABLE = RuntimeError
"""What torch raises, in subclasses, where the process with the store has ended: then there is nobody to notify."""
LOST = (
    "a process was lost: the others wait in vain",
    "go on from the newest checkpoint: the same command with --resume",
)


def world_size() -> int:
    """How many processes torchrun has started; 1 outside of it."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def restarts() -> int:
    """How often these processes were started before, after a failure."""
    counts = (os.environ.get(name, "0") for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))
    return max(int(text) if text.isdecimal() else 0 for text in counts)


@contextmanager
def process_group(
    recipe: Recipe, hardware: Hardware | None = None, abandon: Callable[[SyntheError], None] | None = None
) -> Iterator[Ranks]:
    """The processes of torchrun's environment, with which this one trains `recipe`; alone outside of it.

    abandon: called on rank 0, in a thread, with the error of a process for which rank 0 itself waits in vain: within a
    collective operation on a GPU nothing else can end it.

    Raises InputError where they have other recipes, WorkError where one does not come within `runtime.mesh.timeout`.
    An error of any process in the block is raised on rank 0, and on the others an error with its exit code.
    """
    if world_size() == 1:
        yield SINGLE
        return
    import torch.distributed as dist

    ranks = _join(recipe, hardware or probe())
    ended = threading.Event()
    if abandon is not None and ranks.leads:
        threading.Thread(target=_watch, args=(_store(), ended, abandon), name="failures", daemon=True).start()
    try:
        _check_same(recipe, ranks)
        yield ranks
        ranks.share(None)  # rank 0 has written everything
    except SyntheError as error:
        _leave_error(error)
        raise
    except RuntimeError as error:  # torch's errors of lost connections are subclasses
        if not _is_lost_connection(error):
            _leave_error(WorkError(f"rank {ranks.rank}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
            raise
        raise _reason() from error
    except BaseException as error:
        _leave_error(WorkError(f"rank {ranks.rank}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        raise
    finally:
        ended.set()
        with suppress(UNREACHABLE):
            dist.destroy_process_group()


def _join(recipe: Recipe, hardware: Hardware) -> Ranks:
    import torch.distributed as dist

    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {world_size()}, and {missing[0]} is not set",
            "start the processes with torchrun, or with --processes",
        )
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    device = choose_device(recipe.runtime.device, hardware).value
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
                "start as many processes as there are GPUs, or set runtime.device=cpu",
            )
        torch.cuda.set_device(local_rank)
    seconds = recipe.runtime.mesh.timeout
    try:
        limit = timedelta(seconds=seconds)
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=limit)))
        if (
            os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
        ):  # one agent, whose store has the addresses of processes before
            store = dist.PrefixStore(f"synthe/attempt-{restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise WorkError(
            f"the {world_size()} processes did not meet at {place} within {seconds} seconds",
            "start them all, with the same address; runtime.mesh.timeout sets how long one waits",
        ) from error
    return ProcessRanks(local_rank)


def _check_same(recipe: Recipe, ranks: Ranks) -> None:
    """InputError unless all processes have one recipe."""
    mine = recipe.model_dump(mode="json")
    first = ranks.share(mine)
    differing = ranks.gather(differences(first, mine))
    for rank, changes in enumerate(differing):
        if changes:
            raise InputError(
                f"rank {rank} trains another recipe than rank 0: {'; '.join(changes[:3])}",
                "start all processes with the same recipe and options",
            )


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _leave_error(error: SyntheError) -> None:
    """Leaves an error for the others, unless one is there, and waits until they have noticed."""
    facts = {"kind": type(error).__name__, "lines": error.lines, "hint": error.hint}
    value = json.dumps(facts)
    with suppress(UNREACHABLE):
        import torch.distributed as dist

        _store().compare_set(FAILURE, "", value)
        if dist.get_rank() and not isinstance(error, Interrupted):
            time.sleep(NOTICED)


def _reason() -> SyntheError:
    """Why a connection was lost: what the process has left that failed."""
    end = time.monotonic() + NOTICED
    while time.monotonic() < end:
        with suppress(UNREACHABLE):
            if (error := _left(_store())) is not None:
                return error
        time.sleep(0.1)
    return WorkError(*LOST)


def _watch(store: Any, ended: threading.Event, abandon: Callable[[SyntheError], None]) -> None:
    """Calls `abandon` where a process has failed and this one has not ended some seconds later."""
    error = None
    while error is None and not ended.wait(NOTICED / 2):
        with suppress(UNREACHABLE):
            error = _left(store)
    if error is not None and not ended.wait(PATIENCE):
        abandon(error)


def _left(store: Any) -> SyntheError | None:
    """The error that a process has left; None if there is none."""
    if not store.check([FAILURE]):
        return None
    left = json.loads(store.get(FAILURE))
    kinds = {kind.__name__: kind for kind in (InputError, Interrupted, OutOfMemory)}
    return kinds.get(left["kind"], WorkError)(left["lines"], left["hint"])


def _is_lost_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    words = ("connection", "peer", "timed out", "timeout", "socket", "gloo", "nccl")
    return isinstance(error, kinds) or any(word in str(error).lower() for word in words)
