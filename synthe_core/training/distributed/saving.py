"""Checkpoints of several processes: each writes its shards while training goes on, and rank 0 commits them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.errors import SyntheError, WorkError
from synthe_core.storage.atomic import failure, new_folder
from synthe_core.storage.checkpoint.shards import SHARDS, read_shards, write_shards
from synthe_core.training.distributed.agreement import from_rank_0
from synthe_core.training.distributed.ranks import Ranks

Commit = Callable[[Path, Mapping[str, Tensor]], None]
"""Writes all else of a checkpoint into its folder, of which the exported weights are read."""


class Saving(NamedTuple):
    """A checkpoint that is being written: where it will be, of which step, and the thread that ends it here."""

    path: Path
    step: int
    thread: threading.Thread
    errors: list[BaseException]


class ShardWriter:
    """Writes one checkpoint at a time. All processes call every method together.

    A checkpoint gets its place once all shards and the manifest are on disk: what a lost process has left unfinished is
    no checkpoint, and the one before it stays.
    """

    def __init__(self, ranks: Ranks) -> None:
        import torch.distributed as dist

        self._ranks = ranks
        self._group = dist.new_group(backend="gloo")  # its messages do not mix with those of training
        self._saving: Saving | None = None

    def begin(self, path: Path, step: int, tensors: Mapping[str, Tensor], exported: str, commit: Commit) -> None:
        """Begins to write the sharded `tensors`. Rank 0 then calls `commit` with those whose names begin with
        `exported`, which they lose. The checkpoint before must be finished."""
        assert self._saving is None
        stack = ExitStack()
        folder = from_rank_0(self._ranks, lambda: stack.enter_context(new_folder(path)))
        future = write_shards(folder / SHARDS, tensors, self._group)
        errors: list[BaseException] = []

        def finish() -> None:
            try:
                with stack:
                    future.result()
                    if self._ranks.leads:
                        names = [name for name in tensors if name.startswith(exported)]
                        whole = read_shards(folder / SHARDS, names)
                        commit(folder, {name.removeprefix(exported): whole[name] for name in names})
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=finish, name="checkpoint", daemon=True)
        thread.start()
        self._saving = Saving(path, step, thread, errors)

    def finish(self, *, wait: bool = True) -> Saving | None:
        """The checkpoint that is written since the last call; None if there is none. Without `wait`, None where rank 0
        is still writing. Raises WorkError on all processes if it could not be written."""
        saving = self._saving
        if saving is None or not (wait or self._ranks.share(not saving.thread.is_alive())):
            return None
        saving.thread.join()
        self._saving = None
        for error in self._ranks.gather(_as_error(saving)):
            if error is not None:
                raise error
        return saving


def _as_error(saving: Saving) -> SyntheError | None:
    """Why a checkpoint could not be written, in one line: the cause on the first process that had one."""
    if not saving.errors:
        return None
    error: Any = saving.errors[0]
    causes = getattr(error, "failures", None)  # torch's, by rank
    if causes:
        rank, (cause, _) = min(causes.items())
        made = failure(saving.path, cause)
        return WorkError(f"rank {rank}: {made.message}", made.hint)
    return error if isinstance(error, SyntheError) else failure(saving.path, error)
