"""A sweep on disk: one folder with a manifest, the recipe and the log of every run, and the run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.storage.atomic import failure, write_file
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.storage.json_reader import read_json
from synthe_core.sweep.grid import PlannedRun

MANIFEST, RECIPES, LOGS = "sweep.json", "recipes", "logs"
FORMAT = 1
WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED = "waiting", "running", "finished", "failed", "interrupted"
LAST_LINES = 4096  # bytes of a log that are searched for an error


@dataclass
class RunRecord:
    """What a sweep knows of a run.

    status:  waiting, running, finished, failed or interrupted.
    values:  of a finished run the figures of its newest checkpoint: steps, tokens, seconds, parameters, loss ...
    error:   of a failed run its last error, in one line.
    """

    name: str
    digest: str
    assignments: list[str]
    status: str = WAITING
    attempts: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class SweepFolder:
    """The folder of a sweep, which its caller has claimed. Its manifest is written anew at every change."""

    def __init__(self, path: Path, records: Sequence[RunRecord]) -> None:
        self.path, self.records = path, {record.name: record for record in records}

    @classmethod
    def prepare(cls, path: Path, runs: Sequence[PlannedRun]) -> SweepFolder:
        """The folder for `runs`: a new one, or that of an earlier sweep, whose other runs stay in its manifest.

        InputError if it holds something else, or a run of the same name has another recipe.
        """
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file", "--out names a folder")
        known = {record.name: record for record in read_records(path)} if (path / MANIFEST).is_file() else {}
        if not known and path.is_dir() and any(not each.name.startswith(".") for each in path.iterdir()):
            raise InputError(f"{path} is not empty, and no sweep", "choose another --out")
        for run in runs:
            record = known.setdefault(run.name, RunRecord(run.name, run.recipe.digest(), list(run.assignments)))
            if record.digest != run.recipe.digest():
                raise InputError(
                    f"{path / run.name} is a run of another recipe", "choose another --out, or the recipe of before"
                )
        folder = cls(path, list(known.values()))
        try:
            for name in (RECIPES, LOGS):
                (path / name).mkdir(parents=True, exist_ok=True)
            for run in runs:
                if not folder.recipe(run.name).is_file():
                    write_file(folder.recipe(run.name), run.recipe.to_yaml())
        except OSError as error:
            raise failure(path, error) from error
        folder.write()
        return folder

    def recipe(self, name: str) -> Path:
        """The resolved recipe of a run, from which it is trained."""
        return recipe_of(self.path, name)

    def log(self, name: str) -> Path:
        """What a run prints."""
        return self.path / LOGS / f"{name}.log"

    def run(self, name: str) -> Path:
        return self.path / name

    def set(self, name: str, status: str, **changes: Any) -> RunRecord:
        """Changes a record, and writes the manifest."""
        record = self.records[name]
        record.status = status
        for key, value in changes.items():
            setattr(record, key, value)
        self.write()
        return record

    def write(self) -> None:
        content = {"format": FORMAT, "runs": [asdict(record) for record in self.records.values()]}
        try:
            write_file(self.path / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise failure(self.path / MANIFEST, error) from error


def recipe_of(sweep: Path, name: str) -> Path:
    return sweep / RECIPES / f"{name}.yaml"


def train_arguments(sweep: Path, name: str) -> list[str]:
    """The arguments of `synthe` that begin a run of a sweep, or go on with it where it has begun."""
    run = sweep / name
    begun = run.is_dir() and (bool(checkpoints(run)) or (run / "recipe.yaml").is_file())
    return ["train", str(recipe_of(sweep, name)), "--out", str(run), "--json", *(["--resume"] if begun else [])]


def read_records(path: Path) -> list[RunRecord]:
    """The records of a sweep's manifest. InputError if it is none, or of a newer format."""
    content = read_json(path / MANIFEST)
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise InputError(f"{path / MANIFEST} is not the manifest of a sweep", "choose another folder")
    if content.get("format") != FORMAT:
        raise InputError(f"{path / MANIFEST} has format {content.get('format')}", f"this synthe reads {FORMAT}")
    try:
        return [RunRecord(**each) for each in content["runs"]]
    except TypeError:
        raise InputError(f"{path / MANIFEST} is damaged", "choose another --out") from None


def outcome(run: Path) -> dict[str, Any]:
    """The figures of a run's newest checkpoint. WorkError if it has none."""
    if not checkpoints(run):
        raise WorkError(f"{run} has no checkpoint")
    manifest = Checkpoint.open(run, latest=True).manifest
    return {
        "steps": manifest.step,
        "tokens": manifest.tokens,
        "seconds": manifest.seconds,
        "parameters": manifest.parameters,
        **manifest.metrics,
    }


def last_error(log: Path) -> str | None:
    """The last error that a log reports, in one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LAST_LINES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    rest = [line for line in lines if line.strip() and not line.startswith("hint: ")]
    return errors[-1] if errors else rest[-1] if rest else None
