"""Checkpoints of a run: after `save_checkpoint` and `restore` training continues as if it had never stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.probe import Hardware
from synthe_core.model.sharded_tensors import local, whole
from synthe_core.recipe.schema import Recipe
from synthe_core.state import from_tensors, map_leaves, to_tensors
from synthe_core.storage.checkpoint import Checkpoint, load_weights, save, weights
from synthe_core.storage.checkpoint.shards import has_shards
from synthe_core.storage.checkpoint.write import write_files
from synthe_core.storage.manifest import Manifest, describe_hardware, kernels_used, package_versions
from synthe_core.training.data import TrainingData
from synthe_core.training.distributed.saving import ShardWriter
from synthe_core.training.distributed.sharded_state import AVERAGE, WEIGHTS, restore_shards, sharded_tensors
from synthe_core.training.state import Clock, TrainState


@contextmanager
def evaluation_weights(state: TrainState) -> Iterator[None]:
    """Within the block the model has the weights that are evaluated and saved: the average, if there is one."""
    if state.average is None:
        yield
        return
    with state.average.applied():
        yield


def weights_are_finite(state: TrainState) -> bool:
    """Of all processes; all call it."""
    finite = all(bool(torch.isfinite(local(parameter)).all()) for parameter in state.model.parameters())
    return all(each for (each,) in state.engine.ranks.numbers(finite))


def save_checkpoint(path: Path, state: TrainState, recipe: Recipe, data: TrainingData, hardware: Hardware) -> None:
    """Writes the state: as a model that other verbs read, and beside it what only resuming needs."""
    with evaluation_weights(state):
        tensors = weights(state.model)
    files = _files(state, recipe, data, hardware)
    training = _small_tensors(state) | {"optimizer": state.optimizer.tensors()}
    if state.average is not None:
        training["weights"] = weights(state.model)
    save(path, tensors=tensors, training=training, **files)


def begin_checkpoint(
    path: Path, state: TrainState, recipe: Recipe, data: TrainingData, hardware: Hardware, writer: ShardWriter
) -> None:
    """The same by several processes, all of which call it: their shards are written while training goes on."""
    everything = sharded_tensors(state)
    sharded = {name: tensor for name, tensor in everything.items() if tensor.dim()}
    scalars = {name: whole(tensor).clone() for name, tensor in everything.items() if not tensor.dim()}
    training = _small_tensors(state) | {"scalars": scalars}
    exported = WEIGHTS if state.average is None else AVERAGE
    files = _files(state, recipe, data, hardware)

    def commit(folder: Path, tensors: Mapping[str, Tensor]) -> None:
        single = {name.removeprefix(exported): t for name, t in scalars.items() if name.startswith(exported)}
        write_files(folder, path, tensors={**tensors, **single}, training=training, **files)

    writer.begin(path, state.step, sharded, exported, commit)


def _files(state: TrainState, recipe: Recipe, data: TrainingData, hardware: Hardware) -> dict[str, Any]:
    """What a checkpoint has besides tensors, as `save` takes it."""
    return {
        "recipe": recipe,
        "vocab": state.model.vocab,
        "manifest": _manifest(state, hardware),
        "tokenizer": data.tokenizer,
        "classes": data.classes,
        "base": state.base,
        "state": _facts(state, data),
    }


def _manifest(state: TrainState, hardware: Hardware) -> Manifest:
    return Manifest(
        step=state.step,
        tokens=state.tokens,
        seconds=round(state.clock.seconds, 3),
        parameters=sum(p.numel() for p in state.optimizer.parameters),
        metrics={name: value for name, value in state.metrics.items() if math.isfinite(value)},
        parents=state.parents,
        context=state.context,
        without=sorted(state.model.without),
        kernels=kernels_used(),
        versions=package_versions(),
        hardware=describe_hardware(hardware),
    )


def _small_tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """What resuming needs besides weights and the optimizer's state, whole, by the name of its file."""
    tensors = {"random": _random_states(state)}
    if own := dict(state.objective.tensors()):
        tensors["objective"] = {name: whole(tensor) for name, tensor in own.items()}
    if state.recurrent_state is not None:
        tensors["carried"] = to_tensors(map_leaves(state.engine.ranks.join_rows, state.recurrent_state))
    return tensors


def _random_states(state: TrainState) -> dict[str, Tensor]:
    """The state of torch's random numbers; of processes but the first with their rank in the name."""
    everyone = state.engine.ranks.gather(_random_state(state.settings.device))
    return {
        name if not rank else f"{name}.{rank}": tensor
        for rank, own in enumerate(everyone)
        for name, tensor in own.items()
    }


def _facts(state: TrainState, data: TrainingData) -> dict[str, Any]:
    return {
        "step": state.step,
        "tokens": state.tokens,
        "validated": state.validations,
        "seconds": state.clock.seconds,
        "cursor": state.cursor,
        "device": state.settings.device.type,
        "precision": state.settings.precision,
        "micro_batch": state.settings.micro_batch,
        "tuned_kernels": dict(state.settings.context.tuned_kernels),
        "windows": state.validation_windows,
        "stage": state.stage,
        "text": data.fingerprint(),
    }


def restore(state: TrainState, checkpoint: Checkpoint, data: TrainingData) -> None:
    """Brings `state` and the stream of `data` to a checkpoint of the same run; InputError if the text or the sizes have
    changed."""
    facts = checkpoint.training_state()
    if difference := data.difference(facts["text"]):
        raise InputError(
            difference,
            f"restore the old text, or start a new run from these weights: synthe train --init {checkpoint.path}",
        )
    _restore_tensors(state, checkpoint)
    state.step, state.tokens, state.validations = facts["step"], facts["tokens"], facts["validated"]
    state.clock = Clock(facts["seconds"])
    state.cursor = facts["cursor"]
    data.stream.seek(state.cursor)
    state.validation_windows = facts["windows"]
    state.stage = facts["stage"]
    state.model.leave_out(checkpoint.manifest.without)
    state.metrics = checkpoint.manifest.metrics
    state.parents, state.context = checkpoint.manifest.parents, checkpoint.manifest.context
    _set_random_state(checkpoint.training_tensors("random"), state.settings.device, state.engine.ranks.rank)


def _restore_tensors(state: TrainState, checkpoint: Checkpoint) -> None:
    if has_shards(checkpoint.manifest.files):
        restore_shards(state, checkpoint)
    else:
        saved = checkpoint.tensors if checkpoint.adapter is None else checkpoint.adapter.tensors
        raw = checkpoint.training_tensors("weights") if state.average is not None else saved
        load_weights(state.model, raw, checkpoint.path)
        if state.average is not None:
            state.average.load(saved)
        state.optimizer.load(checkpoint.training_tensors("optimizer"))
    carried = checkpoint.training_tensors("carried")
    if carried:
        mine = state.engine.ranks.rows(state.config.batch)
        template = state.model.init_state(mine.stop - mine.start)
        state.recurrent_state = from_tensors(template, {name: carried[name][mine].clone() for name in carried})


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(tensors: Mapping[str, Tensor], device: torch.device, rank: int) -> None:
    """That of this rank, if the run had so many processes when it was saved; else the numbers go on as they are."""
    suffix = f".{rank}" if rank else ""
    if f"cpu{suffix}" in tensors:
        torch.set_rng_state(tensors[f"cpu{suffix}"].clone())
    if device.type == "cuda" and f"cuda{suffix}" in tensors:
        torch.cuda.set_rng_state(tensors[f"cuda{suffix}"].clone(), device)
