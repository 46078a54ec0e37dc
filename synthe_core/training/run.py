"""The verb `train`: from a recipe, or an interrupted run, to a trained model."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event as Stop

import torch

from synthe_core.data.prepare import open_data
from synthe_core.data.spec import DataSpec
from synthe_core.data.streaming.streamed_data import open_stream
from synthe_core.errors import InputError, Interrupted, OutOfMemory
from synthe_core.events import Event, Notice, Result
from synthe_core.hardware.kernel_tuning import kernel_exists
from synthe_core.hardware.probe import Hardware, probe
from synthe_core.interop.converted import FINE_TUNING
from synthe_core.interop.published_source import PublishedSource
from synthe_core.model.classifier import build_model
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.recipe.differences import differences
from synthe_core.recipe.schema import CONVERSATION_TOKENS, Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.storage.checkpoint.write import model_config
from synthe_core.storage.claim import claim
from synthe_core.storage.hub.snapshot import origin_of, reference_to
from synthe_core.storage.run_folder import RankFolder, RunFolder, new_run, taken
from synthe_core.training.adapting import base_of
from synthe_core.training.checkpointing import restore
from synthe_core.training.data import StreamedData, TextData, TrainingData
from synthe_core.training.distillation.student import with_student
from synthe_core.training.distributed.agreement import from_rank_0, in_turns
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.distributed.ranks import SINGLE, Ranks
from synthe_core.training.distributed.sequence import mesh_for
from synthe_core.training.distributed.stragglers import clocks_apart
from synthe_core.training.example_data import open_example_data
from synthe_core.training.initial_state import Setting, initial_state
from synthe_core.training.loggers import require
from synthe_core.training.objectives import OBJECTIVES
from synthe_core.training.objectives.objective import Objective, ObjectiveSetup
from synthe_core.training.settings import Settings, settings_for
from synthe_core.training.state import TrainState
from synthe_core.training.trainer import Trainer
from synthe_core.training.tuning import tune

IMMUTABLE_KEYS = (
    "model",
    "data",
    "objective",
    "seed",
    "train.batch",
    "train.optimizer",
    "train.carry",
    "train.ema",
    "train.lora",
)
"""What a resumed run cannot change: its state would not fit."""
PROBE_VOCAB = 257
TRAINING = "training in"  # in the message to other processes


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    init: Path | None = None,
    stop: Stop | None = None,
    hardware: Hardware | None = None,
    ranks: Ranks = SINGLE,
) -> Iterator[Event]:
    """Trains what `recipe` describes and yields events; the last is a Result with the run folder.

    out:    the run folder; runs/NAME, or the next free number after it, by default.
    resume: continue the run in `out` from its newest checkpoint. Budget, learning rate and the like may change.
    init:   a checkpoint whose weights a new run begins with; with `train.lora`, the model whose adapter is trained.
    stop:   once set, the trainer saves at the next step and raises Interrupted.
    ranks:  the processes that train together, all of which call this with the same arguments. Rank 0 writes the run.

    Raises InputError for a bad recipe or argument, WorkError for what fails while training: a full disk, divergence.
    """
    stop, hardware = stop or Stop(), hardware or probe()
    recipe = with_student(recipe)
    recipe.meta_model(PROBE_VOCAB)  # an error for impossible sizes, before any work
    settings = settings_for(recipe, hardware)
    require(recipe.runtime.log)
    threads = torch.get_num_threads()
    mesh = mesh_for(recipe, ranks.size)
    with ExitStack() as stack:
        path, saved = from_rank_0(ranks, lambda: _open_run(recipe, out, resume, init, stack))
        checkpoint = Checkpoint.open(path, latest=True) if saved else None
        changes = [] if checkpoint is None else _changes(checkpoint, recipe)
        source = Checkpoint.open(init) if init is not None else checkpoint
        base = None if recipe.train.lora is None else base_of(source, recipe)
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(recipe.runtime.threads or threads)
        data = yield from in_turns(ranks, _open_data(recipe, base, stop, stack))
        setting = Setting(recipe, data, settings, ranks, mesh)
        state = initial_state(setting, source, base, begins=checkpoint is None)
        run = _run_folder(path, ranks)  # once nothing of the command is refused any more
        stack.push(partial(_close, run, begins=not resume))
        if checkpoint is not None:
            finished = yield from _resume(state, checkpoint, recipe, data, changes)
            yield from _rewind(run, state.step)
            if finished:
                yield Result({"steps": state.step, **state.metrics}, path)
                return
        elif resume:
            yield Notice(f"{path} has no checkpoint yet: training starts from the beginning")
            run.rewind(-1)
        _describe(run, recipe, data, state)
        yield from _summary(state, hardware, mesh)
        if checkpoint is None or checkpoint.training_state()["device"] != settings.device.type:
            yield from _tune(state, recipe, hardware)
        _limit_micro_batch(state, run)
        yield from _begin(state, checkpoint, data)
        state.engine.compile(recipe.runtime.compile)
        trainer = Trainer(recipe, data, state, run, hardware, stop)
        stack.callback(trainer.close)
        yield from trainer.train()


def _close(run: RunFolder, kind: type[BaseException] | None, *_: object, begins: bool) -> None:
    """Closes the run folder. A new run that fails before its first step leaves nothing behind."""
    if begins and kind is not None and issubclass(kind, Exception) and not issubclass(kind, (Interrupted, OutOfMemory)):
        run.discard_unused()
    run.close()


def _limit_micro_batch(state: TrainState, run: RunFolder) -> None:
    """Of several processes that were short of memory before. All have the same limit."""
    if state.engine.ranks.size > 1 and (limit := state.engine.ranks.share(run.micro_batch_limit)) is not None:
        state.settings.micro_batch = min(state.settings.micro_batch, limit)


def _rewind(run: RunFolder, step: int) -> Iterator[Event]:
    """Drops the metrics of steps that are done again."""
    if unreadable := run.rewind(step):
        metrics = run.path / "metrics.jsonl"
        yield Notice(f"{metrics}: {unreadable} lines are no metrics, and stay as they are", "warning")


def _describe(run: RunFolder, recipe: Recipe, data: TrainingData, state: TrainState) -> None:
    """Writes into the run's folder what it trains."""
    run.write_recipe(recipe)
    if not isinstance(recipe.model, PublishedSpec):  # transformers itself looks for weights beside its config.json
        run.write_config(model_config(recipe, state.model.vocab, data.classes, state.context), data.tokenizer)


def _run_folder(path: Path, ranks: Ranks) -> RunFolder:
    """The folder as rank 0 writes it, once it is there; of another rank, its own metrics in it."""
    run = RunFolder(path) if ranks.leads else None
    ranks.share(None)
    return run or RankFolder(path, ranks.rank)


def _summary(state: TrainState, hardware: Hardware, mesh: Mesh) -> Iterator[Event]:
    """How many parameters are trained, on what, and by how many processes; and whether their clocks are apart."""
    if (apart := clocks_apart(state.engine.ranks)) is not None:
        yield Notice(apart, "warning")
    total, trained = state.model.parameter_count(), sum(p.numel() for p in state.optimizer.parameters)
    adapter = "" if state.base is None else f", of which {trained:,}, the adapter's, are trained,"
    kind = state.settings.device.type
    processor = hardware.gpu.name if hardware.gpu and kind == "cuda" else hardware.processor
    yield Notice(f"{total:,} parameters{adapter} on {kind} ({processor}){mesh.describe()}")


def _tune(state: TrainState, recipe: Recipe, hardware: Hardware) -> Iterator[Event]:
    """Decides precision and micro-batch for the whole model, whichever parts the first stage leaves out. Of several
    processes rank 0 measures; a sharded model is measured as a whole one of its size."""
    ranks, settings = state.engine.ranks, state.settings
    sequence = 1 if state.engine.sequence is None else state.engine.sequence.size
    recipe = recipe.with_batch(recipe.train.batch * sequence // ranks.size)
    if ranks.leads:
        model = state.model
        if state.engine.sharded:
            with torch.random.fork_rng(devices=[]):
                model = build_model(recipe.model, model.vocab, recipe.runtime.recompute).to(settings.device)
        without = model.without
        model.leave_out(())
        yield from tune(model, recipe, settings, hardware)
        model.leave_out(without)
    settings.precision, settings.micro_batch = ranks.share((settings.precision, settings.micro_batch))


def recipe_from_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe to continue training from a checkpoint: its own with `overrides` and its tokenizer, without its stages
    unless the overrides have some. Other text is not streamed unless they say so."""
    checkpoint = Checkpoint.open(path)
    model = checkpoint.base or checkpoint
    has_file = model.source.on_disk and not isinstance(model.source, PublishedSource) and origin_of(model.path) is None
    file = model.path / "tokenizer.json" if has_file else reference_to(model.path)
    tokens = [] if model.recipe.data.tokenizer.type == "bytes" else [f"data.tokenizer={file}"]
    if any(each.startswith("data.sources") for each in overrides):
        tokens.append("data.stream=false")
    own = checkpoint if "recipe.yaml" in checkpoint.manifest.files else model
    tokens += _adapter_rate(checkpoint, own.recipe, own.recipe_with([*tokens, *overrides]), overrides)
    recipe = own.recipe_with([*tokens, *overrides])
    if recipe.reads != "text" and own.recipe.reads == "text":  # its length of sequences is not that of conversations
        longest = min(CONVERSATION_TOKENS, checkpoint.context or CONVERSATION_TOKENS)
        longest = min(longest, recipe.model.positions or longest)
        recipe = own.recipe_with([*tokens, f"data.sequence={longest}", *overrides])
    if any(each.startswith("train.stages") for each in overrides):
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"stages": []})})


def _adapter_rate(checkpoint: Checkpoint, recipe: Recipe, chosen: Recipe, overrides: Sequence[str]) -> list[str]:
    """The learning rate of a new adapter of a published model, by its objective."""
    fine_tuning = {"optimizer": recipe.train.optimizer, "lr": recipe.train.lr} == FINE_TUNING
    adapter = any(each.startswith("train.lora") for each in overrides) and checkpoint.adapter is None
    objective = OBJECTIVES["language_modeling" if chosen.objective is None else chosen.objective.type]
    return [f"train.lr={objective.adapter_lr}"] if fine_tuning and adapter else []


def _open_run(recipe: Recipe, out: Path | None, resume: bool, init: Path | None, stack: ExitStack) -> tuple[Path, bool]:
    """The run folder, claimed until `stack` ends, and whether it has a checkpoint to resume from."""
    if not resume:
        return stack.enter_context(new_run(recipe.name, out, TRAINING)), False
    if out is None:
        raise InputError("--resume needs the folder of a run", "synthe train runs/NAME --resume")
    if init is not None and checkpoints(out):
        raise InputError("a resumed run has weights already", "leave out --resume or --init")
    if not taken(out):
        raise InputError(f"no such run: {out}", "leave out --resume to start one")
    stack.enter_context(claim(out, TRAINING))
    if not checkpoints(out):
        if not (out / "recipe.yaml").is_file():
            raise InputError(
                f"{out} is not a run: it has neither checkpoints nor a recipe", "name a folder under runs/"
            )
        return out, False
    return out, True


def _open_data(
    recipe: Recipe, base: Checkpoint | None, stop: Stop, stack: ExitStack
) -> Generator[Event, None, TrainingData]:
    """The training data until `stack` ends, prepared now if they are not in the cache. Raises Interrupted once `stop`
    is set."""
    work = _prepare(recipe, base, stop)
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            data: TrainingData = end.value
            stack.callback(data.close)
            return data
        yield event
        if stop.is_set():
            work.close()
            raise Interrupted("stopped while preparing the data", "the same command continues where it stopped")


def _prepare(recipe: Recipe, base: Checkpoint | None, stop: Stop) -> Generator[Event, None, TrainingData]:
    if recipe.objective is not None:
        objective: Objective = OBJECTIVES[recipe.objective.type](recipe.objective)
        recipe = recipe.model_copy(update={"data": (yield from objective.write_data(recipe, base))})
    if recipe.data.stream:
        data: TrainingData = StreamedData(recipe, (yield from open_stream(recipe.data)), stop)
    elif recipe.reads == "text":
        data = TextData(recipe, (yield from open_data(recipe.data)))
    else:
        data = yield from open_example_data(recipe)
    if recipe.train.canary is not None:
        text = {"sources": recipe.train.canary, "validation": 0.0, "labels": None, "stream": False}
        spec = DataSpec.model_validate(recipe.data.model_dump() | text)
        data.canary = (yield from open_data(spec)).sources[0].train
    return data


def _begin(state: TrainState, checkpoint: Checkpoint | None, data: TrainingData) -> Iterator[Event]:
    """Readies the objective, of a resumed run with what it had saved."""
    saved = {} if checkpoint is None else checkpoint.training_tensors("objective")
    if saved:
        state.objective.load(saved)
    settings = state.settings
    setup = ObjectiveSetup(
        state.model,
        data.tokenizer,
        settings.context,
        settings.micro_batch,
        data.sequence,
        data.source_names,
        state.engine,
    )
    yield from state.objective.begin(setup)


def _changes(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """What the recipe changes of a resumed run; InputError for what cannot change."""
    changes = differences(checkpoint.recipe.model_dump(mode="json"), recipe.model_dump(mode="json"))
    for change in changes:
        key = change.partition(":")[0]
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in IMMUTABLE_KEYS):
            raise InputError(
                f"the run cannot be resumed with another {key.split('.')[0]}: {change}",
                "restore it in the recipe, or start a new run",
            )
    return changes


def _resume(
    state: TrainState, checkpoint: Checkpoint, recipe: Recipe, data: TrainingData, changes: list[str]
) -> Generator[Event, None, bool]:
    """Brings the state to where the checkpoint stood; True if the run is finished already."""
    restore(state, checkpoint, data)
    _restore_settings(state.settings, checkpoint, recipe)
    if changes:
        yield Notice(f"changed since the run was interrupted: {', '.join(changes)}")
    before, spec = checkpoint.recipe.train, recipe.train
    fraction = state.counters.fraction(spec.budget)
    same = (before.budget, before.validations) == (spec.budget, spec.validations)
    if not same:
        state.validations = math.floor(fraction * spec.validations)
    if state.validations >= spec.validations or (not same and fraction >= 1):
        yield Notice(
            f"this run is finished: {spec.budget} are spent, at step {state.step}; "
            "to train longer, raise it: --set train.budget=..."
        )
        return True
    yield Notice(f"resuming from step {state.step}, {fraction:.0%} of {spec.budget}")
    return False


def _restore_settings(settings: Settings, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Restores precision, micro-batch and tuned kernels, unless the recipe sets others."""
    before, facts = checkpoint.recipe, checkpoint.training_state()
    tuned = {op: kernel for op, kernel in facts["tuned_kernels"].items() if kernel_exists(op, kernel)}
    settings.context = replace(settings.context, tuned_kernels=tuned)
    same = recipe.runtime.precision in ("auto", before.runtime.precision)
    settings.precision = facts["precision"] if same else recipe.runtime.precision
    same = recipe.train.micro_batch in ("auto", before.train.micro_batch)
    settings.micro_batch = facts["micro_batch"] if same else min(int(recipe.train.micro_batch), recipe.train.batch)
