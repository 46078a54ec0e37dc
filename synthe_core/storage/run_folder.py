"""A run on disk: runs/NAME with recipe, metrics and checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.atomic import failure, remove_folder, write_file
from synthe_core.storage.checkpoint import CHECKPOINTS, best_checkpoint, checkpoints
from synthe_core.storage.claim import LOCK, Busy, claim, is_empty, remove, sweep

RUNS = Path("runs")
RANKS, MICRO_BATCH = "ranks", "micro-batch"


class RunFolder:
    """The folder of one run. Who writes to it has claimed it (`new_run`, `claim`).

    metrics.jsonl has a line for every metric: {"step", "phase", "seconds", ...}. Lines are only appended, except that
    resuming from step n first drops the lines after n.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self._made = not path.exists()
        try:
            os.makedirs(os.path.realpath(self.checkpoints), exist_ok=True)  # `path` may be a link to a new folder
            sweep(path)
            sweep(self.checkpoints)
            self._metrics = (path / "metrics.jsonl").open("a+b")
        except OSError as error:
            raise failure(path, error) from error

    def write_recipe(self, recipe: Recipe) -> None:
        write_file(self.path / "recipe.yaml", recipe.to_yaml())

    def write_config(self, config: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        """Writes config.json and the tokenizer's files, with which transformers takes the run for a model of ours."""
        try:
            write_file(self.path / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
            if tokenizer is not None:
                tokenizer.save(self.path)
        except OSError as error:
            raise failure(self.path, error) from error

    def checkpoint(self, step: int) -> Path:
        """The path of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:08}"

    def record(self, step: int, phase: str, values: dict[str, float]) -> None:
        """Appends a line to metrics.jsonl; NaN and infinity become null."""
        plain = {key: value if math.isfinite(value) else None for key, value in values.items()}
        try:
            self._metrics.write(json.dumps({"step": step, "phase": phase, **plain}).encode() + b"\n")
            self._metrics.flush()
        except OSError as error:
            raise failure(self.path / "metrics.jsonl", error) from error

    def rewind(self, step: int) -> int:
        """Drops the metrics of steps after `step`, and a last line that was cut short.

        Lines that are no metrics stay where they are; returns their number.
        """
        self._metrics.seek(0)
        end = unreadable = 0
        for line in self._metrics:
            if not line.endswith(b"\n"):
                break
            number = _step(line)
            if number is not None and number > step:
                break
            unreadable += number is None
            end += len(line)
        self._metrics.truncate(end)
        return unreadable

    @property
    def micro_batch_limit(self) -> int | None:
        """The largest micro-batch with which memory has not run out on some process; None if it never did."""
        try:
            return int((self.path / RANKS / MICRO_BATCH).read_text())
        except (OSError, ValueError):
            return None

    def limit_micro_batch(self, rows: int) -> None:
        """Sets the limit, for the processes that go on with the run."""
        os.makedirs(self.path / RANKS, exist_ok=True)
        write_file(self.path / RANKS / MICRO_BATCH, f"{rows}\n")

    def prune(self, keep: int) -> None:
        """Deletes all checkpoints but the `keep` newest and the best by validation."""
        paths = checkpoints(self.path)
        retained = {*paths[-keep:], best_checkpoint(paths)}
        for path in paths:
            if path not in retained:
                remove_folder(path)

    def close(self) -> None:
        self._metrics.close()

    def discard_unused(self) -> None:
        """Empties the folder of a new run that has neither metrics nor checkpoints, and removes it if it was made for
        that run: the same command then works with the same name."""
        if checkpoints(self.path) or self._metrics.tell():
            return
        folder = Path(os.path.realpath(self.path))
        for each in folder.iterdir():
            if each.name != LOCK:
                remove(each)
        if self._made and not any(folder.iterdir()):
            folder.rmdir()


class RankFolder(RunFolder):
    """The run folder of a process that is not rank 0, which writes its own metrics only, in ranks/."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.checkpoints = path, path / CHECKPOINTS
        self._file = path / RANKS / f"metrics-{rank:05}.jsonl"
        try:
            os.makedirs(self._file.parent, exist_ok=True)
            self._metrics = self._file.open("a+b")
        except OSError as error:
            raise failure(self._file, error) from error

    def write_recipe(self, recipe: Recipe) -> None:
        """Rank 0's work."""

    def write_config(self, config: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        """Rank 0's work."""

    def prune(self, keep: int) -> None:
        """Rank 0's work."""

    def discard_unused(self) -> None:
        """Rank 0's work."""


def _step(line: bytes) -> int | None:
    """The step of a line of metrics; None if it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if type(step) is int else None


@contextmanager
def new_run(name: str, out: Path | None, doing: str = "writing") -> Iterator[Path]:
    """Claims the folder for a new run: `out`, or the first free of runs/NAME, runs/NAME-2, runs/NAME-3 ...

    InputError if `out` is not empty, Busy if another process writes there.
    """
    with ExitStack() as stack:
        if out is None:
            out = _claim_free(name, doing, stack)
        else:
            stack.enter_context(claim(out, doing, parents=True))
            _check_new(out)
        yield out


def newest_run(name: str) -> Path | None:
    """The newest of runs/NAME, runs/NAME-2 ...; None if there is none."""
    folders = [RUNS / name, *RUNS.glob(f"{name}-[0-9]*")]
    return max((each for each in folders if each.is_dir()), key=lambda each: each.stat().st_mtime, default=None)


def _claim_free(name: str, doing: str, stack: ExitStack) -> Path:
    for number in count(1):
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        if taken(path):
            continue
        with ExitStack() as attempt:
            try:
                attempt.enter_context(claim(path, doing, parents=True))
            except Busy:
                continue
            if not taken(path):
                stack.push(attempt.pop_all())
                return path
    raise AssertionError("the numbers do not end")


def _check_new(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", "--out names a folder")
    if taken(out):
        resumable = bool(checkpoints(out))
        hint = f"resume it: synthe train {out} --resume; or choose another --out"
        raise InputError(f"{out} is not empty", hint if resumable else "choose another --out")


def taken(path: Path) -> bool:
    """Whether a path exists and is not an empty folder."""
    return path.exists() and (not path.is_dir() or not is_empty(path))
