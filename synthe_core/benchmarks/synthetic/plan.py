"""The trials of a sweep from the options of the command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from synthe_core.benchmarks.synthetic.trial import Trial
from synthe_core.errors import InputError, unknown
from synthe_core.layers import LAYERS
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.yaml_reader import parse_value
from synthe_core.tasks import TASKS
from synthe_core.tasks.task import PresetName

HEAD_SIZE = 32  # channels of a head by default: more heads would be too narrow at small widths
BLOCKS = 2


class Protocol(NamedTuple):
    """How the models of a preset are trained by default."""

    width: int
    batch: int
    epochs: int
    optimizer: str
    rates: tuple[float, ...]


PROTOCOLS: dict[PresetName, Protocol] = {
    "quick": Protocol(64, 32, 1, "muon", (3e-3,)),
    "standard": Protocol(128, 128, 8, "adamw", (1e-3, 3e-3)),
    "zoology": Protocol(128, 256, 32, "adamw", (1e-3, 10**-2.5, 1e-2, 10**-1.5)),  # Arora et al. 2023
}
CORE = ("mqar", "recall-overwrite", "selective-copying", "induction", "parity", "state-tracking")
"""Recall, recall of the newest value, copying by content, induction, and two kinds of state tracking."""

REAL_VALUED = ("lr", "weight_decay")
SWEPT = ("lr", "width", "blocks", "batch", "epochs", "weight_decay")


def layer_model(text: str, width: int, settings: Mapping[str, Any], blocks: int = BLOCKS) -> ModelSpec:
    """`blocks` of the learners in `text` ("delta"; a hybrid is "conv,attention"), without an MLP.

    Recall needs a short convolution: learners without one of their own get one before them. `settings` apply to every
    learner that has such a key. InputError if none has.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in LAYERS:
            raise unknown("learner", name, LAYERS)
    used: set[str] = set()
    block: list[Any] = []
    for name in names:
        keys = LAYERS[name].Config.model_fields
        entry: dict[str, Any] = {"type": name}
        if "heads" in keys:
            entry["heads"] = max(1, width // HEAD_SIZE)
        entry |= {key: value for key, value in settings.items() if key in keys}
        used |= settings.keys() & keys
        try:
            block.append(LAYERS[name].Config.model_validate(entry))
        except ValidationError as error:
            raise _fault("--set learner", error) from None
    if missing := settings.keys() - used:
        known = sorted({key for name in names for key in LAYERS[name].Config.model_fields} - {"type"})
        raise unknown(f"key of {text}", min(missing), known)
    if "conv" not in names and not any("conv" in LAYERS[name].Config.model_fields for name in names):
        block.insert(0, {"type": "conv"})
    try:
        return ModelSpec.model_validate({"width": width, "blocks": blocks, "block": block})
    except ValidationError as error:
        raise _fault(f"--layer {text}", error) from None


def _fault(where: str, error: ValidationError) -> InputError:
    fault = error.errors(include_url=False)[0]
    path = ".".join(map(str, (where, *fault["loc"])))
    return InputError(f"{path}: {fault['msg'][:1].lower()}{fault['msg'][1:]}", "`synthe recipe schema` lists every key")


def trials(
    task: str,
    *,
    layers: Sequence[str] = (),
    recipes: Sequence[Path] = (),
    preset: PresetName = "quick",
    settings: Mapping[str, Any] | None = None,
    learner: Mapping[str, Any] | None = None,
    swept: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    **fixed: Any,
) -> list[Trial]:
    """Every combination of model, swept value and seed. `fixed` overrides the preset's protocol (lr, batch ...)."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    protocol = PROTOCOLS[preset]
    own = TASKS[task].preset(preset).lr
    grid: dict[str, Sequence[Any]] = {"lr": protocol.rates if own is None else [own]} | {
        key: [value] for key, value in fixed.items()
    }
    for key, values in (swept or {}).items():
        if key not in SWEPT:
            raise unknown("key to sweep", key, SWEPT)
        grid[key] = values
    planned = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        width, blocks = int(chosen.pop("width", protocol.width)), int(chosen.pop("blocks", BLOCKS))
        models = {text: layer_model(text, width, learner or {}, blocks) for text in layers}
        stems = [path.stem for path in recipes]
        models |= {
            path.stem if stems.count(path.stem) == 1 else str(path.with_suffix("")): Recipe.load(path).model
            for path in recipes
        }
        common = {"batch": protocol.batch, "epochs": protocol.epochs, "optimizer": protocol.optimizer} | chosen
        for (label, model), seed in itertools.product(models.items(), range(seeds)):
            planned.append(_trial(task, preset, settings or {}, label, model, seed, common))
    return planned


def suite(tasks: Sequence[str], **options: Any) -> list[Trial]:
    """The trials of several tasks, of all by default; `options` are those of `trials`."""
    return [trial for task in dict.fromkeys(tasks or TASKS) for trial in trials(task, **options)]


def causal_learners() -> list[str]:
    """The learners of the table that a language model can have."""
    return [name for name in LAYERS if LAYERS[name].causal]


def _trial(
    task: str,
    preset: PresetName,
    settings: Mapping[str, Any],
    label: str,
    model: ModelSpec,
    seed: int,
    common: dict[str, Any],
) -> Trial:
    known = [key for key in TASKS[task].Config.model_fields if key != "type"]
    for key in settings:
        if key not in known:
            raise unknown(f"setting of {task}", key, known)
    try:
        trial = Trial(task=task, preset=preset, settings=dict(settings), label=label, model=model, seed=seed, **common)
        trial.shares()
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise InputError(f"{task}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    return trial


def parse_assignments(texts: Iterable[str], option: str) -> dict[str, Any]:
    """`["beta_range=[0,2]"]` as {"beta_range": [0, 2]}: values are YAML."""
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{option} {text}: expected key=value")
        values[key.strip()] = parse_value(value, f"{option} {text}")
    return values


def parse_sweep(texts: Iterable[str]) -> dict[str, list[Any]]:
    """`["lr=1e-3,3e-3"]` as {"lr": [0.001, 0.003]}."""
    swept: dict[str, list[Any]] = {}
    for key, value in parse_assignments(texts, "--sweep").items():
        values = [yaml.safe_load(part) for part in str(value).split(",") if part.strip()] if value is not None else []
        if not values:
            raise InputError(f"--sweep {key}: no values", f"for example --sweep {key}=1,2")
        if bad := [v for v in values if not isinstance(v, int | float) and not _is_number(v)]:
            raise InputError(f"--sweep {key}: '{bad[0]}' is not a number")
        if key not in REAL_VALUED and (bad := [v for v in values if float(v) != int(float(v))]):
            raise InputError(f"--sweep {key}: {bad[0]} is not a whole number")
        swept[key] = [float(v) if key in REAL_VALUED else int(float(v)) for v in values]
    return swept


def _is_number(value: Any) -> bool:
    """Whether a text is a number: YAML reads 1e-3 as a text."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
