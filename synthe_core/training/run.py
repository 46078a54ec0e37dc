"""The verb `train`: from a recipe, or a run that was interrupted, to a trained model."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Stop

import torch

from synthe_core.data.prepare import Packed, open_data
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Event, Notice, Result
from synthe_core.hardware.kernel_tuning import kernel_exists
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.model.classifier import build_model
from synthe_core.ops.dispatch import OPS
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints, load_weights
from synthe_core.storage.run_folder import RunFolder, differences, new_run, taken
from synthe_core.training.adapting import adapt, base_of
from synthe_core.training.loggers import require
from synthe_core.training.settings import Settings, settings
from synthe_core.training.snapshot import Snapshot
from synthe_core.training.trainer import Trainer
from synthe_core.training.tuning import tune

FIXED = ("model", "data", "seed", "train.batch", "train.optimizer", "train.carry", "train.ema", "train.lora")
"""What a run cannot change while it goes on: the state that it has would not fit."""
PROBE_VOCAB = 257


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    init: Path | None = None,
    stop: Stop | None = None,
    hardware: Hardware | None = None,
) -> Iterator[Event]:
    """Trains what `recipe` describes and yields events; the last is a Result with the run folder.

    out:    the run folder; runs/NAME, or the next free number after it, by default.
    resume: go on with the run in `out` from its newest checkpoint. Budget, learning rate and the like may change.
    init:   a checkpoint whose weights a new run begins with; with `train.lora`, the model whose adapter is trained.
    stop:   once set, the trainer saves at the next step and raises Interrupted.

    Raises InputError for what cannot be done, WorkError for what failed on the way: a full disk, divergence.
    """
    stop = stop or Stop()
    hardware = hardware or probe()
    recipe.meta_model(PROBE_VOCAB)  # impossible sizes, before any work
    chosen = settings(recipe, hardware)
    require(recipe.runtime.log)
    path, checkpoint = _open(recipe, out, resume, init)
    changes = [] if checkpoint is None else _changes(checkpoint, recipe)
    source = Checkpoint.open(init) if init is not None else checkpoint
    base = None if recipe.train.lora is None else base_of(source, recipe)
    threads = torch.get_num_threads()
    trainer: Trainer | None = None
    run: RunFolder | None = None
    try:
        torch.set_num_threads(recipe.runtime.threads or threads)
        packed = yield from _prepared(recipe, stop)
        run = RunFolder(path)
        snapshot = _begin(recipe, packed, chosen, source, base, begins=checkpoint is None)
        if checkpoint is not None:
            finished = yield from _resume(snapshot, checkpoint, recipe, chosen, changes)
            run.rewind(snapshot.position.step)
            if finished:
                yield Result({"steps": snapshot.position.step, **snapshot.metrics}, path)
                return
        elif resume:
            yield Notice(f"{path} has no checkpoint yet: training begins at its start")
            run.rewind(-1)
        run.write_recipe(recipe)
        every, learning = snapshot.model.parameter_count(), sum(p.numel() for p in snapshot.optimizer.parameters)
        adapter = "" if base is None else f", of which {learning:,}, the adapter's, learn,"
        yield Notice(
            f"{every:,} parameters{adapter} on {chosen.device.type}"
            f" ({hardware.gpu.name if hardware.gpu and chosen.device.type == 'cuda' else hardware.processor})"
        )
        if checkpoint is None or checkpoint.training_state()["device"] != chosen.device.type:
            without = snapshot.model.without
            snapshot.model.leave_out(())  # all of it must fit, whichever stage this is
            yield from tune(snapshot.model, recipe, chosen, hardware)
            snapshot.model.leave_out(without)
        if recipe.runtime.compile:
            for block in snapshot.model.blocks:
                block.compile()
        trainer = Trainer(recipe, packed, snapshot, run, hardware, stop)
        yield from trainer.run_to_the_end()
    finally:
        torch.set_num_threads(threads)
        if trainer is not None:
            trainer.close()
        if run is not None:
            run.close()


def recipe_of(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that goes on from a checkpoint: its own with `overrides`, reading text with its tokenizer, and without
    the stages in which the model grew unless the overrides have some."""
    checkpoint = Checkpoint.open(path)
    whole = checkpoint.base or checkpoint
    tokens = [] if whole.recipe.data.tokenizer.type == "bytes" else [f"data.tokenizer={whole.path / 'tokenizer.json'}"]
    own = checkpoint if "recipe.yaml" in checkpoint.manifest.files else whole
    recipe = Recipe.load(own.path, [*tokens, *overrides])
    if any(each.startswith("train.stages") for each in overrides):
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"stages": []})})


def _open(recipe: Recipe, out: Path | None, resume: bool, init: Path | None) -> tuple[Path, Checkpoint | None]:
    """The run folder, and the checkpoint to go on from."""
    if not resume:
        return new_run(recipe.name, out), None
    if out is None:
        raise InputError("which run is to go on?", "name its folder: synthe train runs/NAME --resume")
    if init is not None:
        raise InputError("a run that goes on has weights already", "leave out either --resume or the first weights")
    if not taken(out):
        raise InputError(f"no such run: {out}", "leave out --resume to begin one")
    if not checkpoints(out):
        if not (out / "recipe.yaml").is_file():
            raise InputError(f"{out} is no run: it has neither checkpoints nor a recipe", "name a folder under runs/")
        return out, None
    return out, Checkpoint.open(out, latest=True)


def _prepared(recipe: Recipe, stop: Stop) -> Generator[Event, None, Packed]:
    work = open_data(recipe.data)
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            packed: Packed = end.value
            return packed
        yield event
        if stop.is_set():
            work.close()
            raise Interrupted("stopped while preparing the data", "the same command goes on where it stopped")


def _begin(
    recipe: Recipe, packed: Packed, chosen: Settings, source: Checkpoint | None, base: Checkpoint | None, begins: bool
) -> Snapshot:
    """The start of a run. Initial values are drawn on the CPU, so that a seed means the same on every device.

    source: has the first weights where the run `begins`, or is to be gone on from (which the caller does).
    base:   the model that an adapter is trained over.

    A model that has weights already may know more tokens than its tokenizer: published models pad their vocabulary.
    """
    for op in OPS.values():
        op.used.clear()
    torch.manual_seed(recipe.seed)
    vocab = max(packed.tokenizer.vocab_size, source.vocab if source else 0)
    model = build_model(recipe.model, vocab, recipe.runtime.recompute)
    if begins and source is not None and source.tokenizer().digest != packed.tokenizer.digest:
        owner = (source.base or source).path
        theirs = owner / "tokenizer.json" if owner.is_dir() else "DIR, after synthe unpack -o DIR"
        raise InputError(
            f"{source.path} was trained with other tokens than the recipe's",
            f"use its tokenizer: --set data.tokenizer={theirs}",
        )
    if base is not None and source is not None:
        load_weights(model, base.tensors, base.path)
        adapt(model, recipe, source)
    elif begins and source is not None:
        load_weights(model, source.tensors, source.path, fresh=("router.", "confidence."))  # may be learned afterwards
    snapshot = Snapshot(recipe, packed, model.to(chosen.device), chosen)
    snapshot.parents = [str(source.path)] if begins and source is not None else []
    snapshot.base = base
    if base is not None and snapshot.labelled is not None and list(snapshot.labelled.classes) != base.classes:
        raise InputError(
            f"the text has other classes than {base.path}: {', '.join(snapshot.labelled.classes)}",
            "an adapter keeps the head: use text with the same labels, or leave out train.lora",
        )
    return snapshot


def _changes(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """What the recipe changes of a run that goes on; InputError for what cannot change."""
    changes = differences(checkpoint.recipe.model_dump(mode="json"), recipe.model_dump(mode="json"))
    for change in changes:
        key = change.partition(":")[0]
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise InputError(
                f"the run cannot go on with another {key.split('.')[0]}: {change}",
                "put it back in the recipe, or begin a new run",
            )
    return changes


def _resume(
    snapshot: Snapshot, checkpoint: Checkpoint, recipe: Recipe, chosen: Settings, changes: list[str]
) -> Generator[Event, None, bool]:
    """Brings the snapshot to where the checkpoint stood; True where the run is finished already."""
    before = checkpoint.recipe
    snapshot.restore(checkpoint)
    state = checkpoint.training_state()
    tuned = {op: kernel for op, kernel in state.get("tuned_kernels", {}).items() if kernel_exists(op, kernel)}
    chosen.context = replace(chosen.context, tuned_kernels=tuned)
    kept = recipe.runtime.precision in ("auto", before.runtime.precision)
    chosen.precision = state["precision"] if kept else recipe.runtime.precision
    kept = recipe.train.micro_batch in ("auto", before.train.micro_batch)
    chosen.micro_batch = state["micro_batch"] if kept else min(int(recipe.train.micro_batch), recipe.train.batch)
    if changes:
        yield Notice(f"changed since the last session: {', '.join(changes)}")
    position, spec = snapshot.position, recipe.train
    same = (before.train.budget, before.train.validations) == (spec.budget, spec.validations)
    if not same:
        position.validated = math.floor(position.fraction(spec.budget) * spec.validations)
    if position.validated >= spec.validations or (not same and position.fraction(spec.budget) >= 1):
        yield Notice(
            f"this run is finished: {spec.budget} are used up, at step {position.step}; "
            "to train longer, raise it: --set train.budget=..."
        )
        return True
    yield Notice(f"going on from step {position.step}, {position.fraction(spec.budget):.0%} of {spec.budget}")
    return False
