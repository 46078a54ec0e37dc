"""Training of a specialist's adapter by `synthe_core.training`, in a folder of its own that a kill leaves resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator
from pathlib import Path
from threading import Event as Stop

from synthe_core.adapters import peft
from synthe_core.adapters.peft_config import read_config
from synthe_core.adapters.spec import LoraSpec
from synthe_core.data.conversations.prepare import examples_path
from synthe_core.data.conversations.sources import RowSource
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError
from synthe_core.events import Event, without_results
from synthe_core.interop.hub import local_path
from synthe_core.recipe.schema import Recipe
from synthe_core.storage import adapter_files
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.plan import Plan
from synthe_core.swarm.learning.rows import answer_row, preference_row, read_pairs, write_rows
from synthe_core.training import recipe_from_checkpoint, train

TRAINING, VALIDATION, START, RUN, PLAN = "rows.jsonl", "held-out-rows.jsonl", "start", "run", "plan.json"
HELD_OUT, EARLIER, CHECKED = "held-out.jsonl", "earlier.jsonl", "checked.jsonl"
"""Pairs that the promotion gate reads: new ones, those held out before, and those of `promotion.pairs`."""
GATE_FILES = (HELD_OUT, EARLIER, CHECKED)
VALIDATIONS = 4
"""How often the held-out pairs are read while training, for the curve of its metrics."""


class LearningRun:
    """The training of one plan.

    path: learning/NAME/DIGEST in the swarm's folder, with the rows and the run. What a kill leaves there is trained
    further by the next run of the same plan.
    """

    def __init__(self, folder: SwarmFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.specialist = folder.specialist(plan.specialist)
        model = folder.base if self.specialist.model is None else folder.resolve(self.specialist.model)
        self.base = local_path(Path(model))
        settings = [plan.digest, folder.spec.learning.model_dump(mode="json"), self.specialist.prompt]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder.path / "learning" / plan.specialist / digest
        self._recipe: Recipe | None = None

    def train(self, pairs: Pairs, stop: Stop) -> Generator[Event, None, Checkpoint]:
        """Trains, and returns the adapter after the last step. Raises Interrupted once `stop` is set."""
        if not (self.path / PLAN).is_file():
            self._write(pairs)
        run = self.path / RUN
        resume = run.is_dir() and bool(checkpoints(run))
        events = train(self.recipe, out=run, resume=resume, init=None if resume else self._init, stop=stop)
        yield from without_results(events, [])
        return Checkpoint.open(run, latest=True)

    @property
    def earlier(self) -> list[Path]:
        """The files of pairs that were held out before."""
        return [path for path in (self.path / EARLIER, self.path / CHECKED) if path.is_file()]

    def discard(self) -> None:
        """Removes the folder, and what the cache has of its rows: they are what users wrote."""
        if self._recipe is not None:
            tokenizer, reads = Checkpoint.open(self.base).tokenizer(), self.recipe.reads
            files = [(TRAINING, reads), (VALIDATION, reads), *((name, "preferences") for name in GATE_FILES)]
            for name, kind in files:
                if (self.path / name).is_file() and kind != "text":
                    source = RowSource.open(str(self.path / name))
                    for sequence in (self.recipe.data, gate_data(self.recipe)):
                        examples_path(sequence, source, kind, tokenizer).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self.path.parents[:2]:
            try:
                folder.rmdir()
            except OSError:
                return

    @property
    def _init(self) -> Path:
        """What training begins with: the adapter, or the base."""
        return self.path / START if (self.path / START).is_dir() else self.base

    def _write(self, pairs: Pairs) -> None:
        """The rows that are trained on, and the adapter that training begins with."""
        row = answer_row if self.folder.spec.learning.objective == "sft" else preference_row
        plan = self.plan
        with new_folder(self.path) as partial:
            sides = ((TRAINING, (*plan.trained, *plan.replayed)), (VALIDATION, plan.held_out))
            for name, ids in sides:
                write_rows(partial / name, (row(pairs.get(id), self.specialist) for id in ids))
            gate = ((HELD_OUT, plan.held_out), (EARLIER, plan.earlier))
            for name, ids in gate:
                if ids:
                    write_rows(partial / name, (preference_row(pairs.get(id), self.specialist) for id in ids))
            if (checked := self.folder.spec.promotion.pairs) is not None:
                rows = read_pairs(Path(self.folder.resolve(checked)), self.specialist)
                write_rows(partial / CHECKED, rows)
            if plan.start is not None:
                (partial / START).mkdir()
                start = Path(self.folder.resolve(plan.start))
                copy_adapter(start, self.base, partial / START, self.path / START)
            (partial / PLAN).write_text(json.dumps(plan.json()) + "\n", encoding="utf-8")

    @property
    def recipe(self) -> Recipe:
        """What is trained, and how."""
        if self._recipe is None:
            self._recipe = self._made(self._init)
        return self._recipe

    def _made(self, init: Path) -> Recipe:
        spec = self.folder.spec.learning
        lora = LoraSpec(rank=spec.rank) if init == self.base else lora_spec(init, Checkpoint.open(init, base=self.base))
        values = lora.model_dump(mode="json", exclude_none=True)
        changes = [
            f"data.sources={self.path / TRAINING}",
            f"data.validation={self.path / VALIDATION}",
            f"data.sequence={spec.sequence}",
            f"objective.type={spec.objective}",
            f"train.lora={json.dumps(values)}",
            f"train.budget={spec.epochs}epochs",
            f"train.batch={spec.batch}",
            f"train.lr={spec.lr!r}",
            f"train.validations={VALIDATIONS}",
            "train.keep=1",
            "train.canary=null",
            "train.sample=null",
            "runtime.log=[]",
        ]
        return recipe_from_checkpoint(init, changes)


def gate_data(recipe: Recipe) -> DataSpec:
    """How the promotion gate reads pairs: as training does, without a split."""
    return recipe.data.model_copy(update={"validation": 0.0})


def lora_spec(path: Path, opened: Checkpoint) -> LoraSpec:
    """The settings under which the adapter at `path` is trained further. InputError for one that has several scales."""
    adapter, config = opened.fitted_adapter, read_config(path / peft.CONFIG)
    assert adapter is not None
    rank, alpha = (config.values.get(key) for key in ("r", "lora_alpha"))
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise InputError(f"{path / peft.CONFIG} has no rank or alpha", "use an adapter that PEFT reads")
    spec = LoraSpec(
        rank=rank,
        alpha=float(alpha),
        rslora=bool(config.values.get("use_rslora")),
        dropout=adapter.dropout,
        targets=list(adapter.maps),
    )
    if any(change.scaling != spec.scaling for change in adapter.maps.values()):
        raise InputError(
            f"{path} has matrices of several scales, and cannot be trained further",
            "give the specialist another adapter",
        )
    return spec


def copy_adapter(source: Path, base: Path, into: Path, final: Path) -> None:
    """Copies the adapter at `source` into the folder `into`, which will be `final`, so that it names its base."""
    opened = Checkpoint.open(source, base=base)
    adapter = opened.fitted_adapter
    assert adapter is not None and opened.base is not None
    spec = lora_spec(opened.path, opened)
    adapter_files.write(into, adapter.tensors, spec, final, opened.base.path, opened.base.digest)
