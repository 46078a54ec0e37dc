"""Where metrics go besides metrics.jsonl: TensorBoard, trackio, Weights & Biases. Each keeps its files in the run."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from synthe_core.errors import InputError
from synthe_core.recipe.schema import Recipe


class Logger(Protocol):
    def log(self, step: int, phase: str, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, recipe: Recipe, run: Path, step: int) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, phase: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """trackio or wandb, which have the same interface: init, log, finish."""

    def __init__(self, package: str, recipe: Recipe, run: Path, step: int) -> None:
        extra: dict[str, Any] = {"resume": "allow"}
        if package == "trackio":
            os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
        else:
            extra |= {"dir": str(run), "id": _wandb_id(run)}
        self._package = import_module(package)
        with redirect_stdout(sys.stderr):  # stdout is for results
            self._package.init(
                project="synthe", name=run.resolve().name, config=recipe.model_dump(mode="json"), **extra
            )

    def log(self, step: int, phase: str, values: dict[str, float]) -> None:
        self._package.log({f"{phase}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._package.finish()


def _wandb_id(run: Path) -> str:
    """The run's id: random, stored in RUN/wandb-id, so that a resumed run continues its curves."""
    path = run / "wandb-id"
    if not path.exists():
        path.write_text(f"{run.resolve().name}-{secrets.token_hex(4)}")
    return path.read_text()


def require(names: Sequence[str]) -> None:
    """InputError for a logger whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"runtime.log names {name}, which is not installed", "pip install 'synthe[log]'")


def open_loggers(recipe: Recipe, run: Path, step: int) -> list[Logger]:
    """The loggers that the recipe names, for a run at `step`."""
    loggers: list[Logger] = []
    for name in recipe.runtime.log:
        try:
            loggers.append(
                TensorBoard(recipe, run, step) if name == "tensorboard" else Tracker(name, recipe, run, step)
            )
        except Exception as error:  # their libraries may need a login or a network
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{name} could not be started: {reason}", "or take it out of runtime.log") from error
    return loggers
