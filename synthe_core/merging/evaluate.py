"""Evaluating a merged model beside its parents: bits per byte on texts, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.data.corpora import open_source
from synthe_core.data.stream import windows
from synthe_core.errors import InputError
from synthe_core.evaluation.bits_per_byte import evaluate_bits_per_byte
from synthe_core.evaluation.held_out import held_out
from synthe_core.evaluation.task_index import names
from synthe_core.events import Event, Progress, Result
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.merging.inputs.checkpoint import CheckpointModel
from synthe_core.merging.inputs.model import Model, View
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.storage.checkpoint import load_weights

TOKENS = 65_536
ROWS = 8  # windows a pass


class Weights(Mapping[str, Tensor]):
    """A model's tensors as a mapping."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Tensor:
        return self._model.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.tensors)

    def __len__(self) -> int:
        return len(self._model.tensors)


def split_targets(targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts and the tasks (or their YAML files) among `targets`. InputError for a name that is neither."""
    texts: list[str] = []
    tasks: list[str] = []
    for name in targets:
        if is_task_file(Path(name)):
            tasks.append(name)
            continue
        try:
            open_source(name, "text")
            texts.append(name)
        except InputError:
            if name not in names(name):
                raise
            tasks.append(name)
    return texts, tasks


def is_task_file(path: Path) -> bool:
    """Whether a YAML file describes a task of the harness (otherwise it is read as text)."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    return re.search(r"^(task|group):", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None


def require_runnable(models: Sequence[Model], on_tasks: bool = False) -> None:
    """InputError if one of the models cannot be run here."""
    for model in models:
        if not isinstance(_checkpoint_model(model), CheckpointModel):
            raise InputError(
                f"{model.named} is no checkpoint of synthe, and cannot be evaluated", "make one: synthe import hf"
            )
        if on_tasks and isinstance(model, View):
            raise InputError(
                f"{model.named} is no checkpoint on disk, and tasks need one",
                "write it first: synthe merge linear BASE ADAPTER --as model",
            )


def compare(models: Mapping[str, Model], texts: Sequence[str], tokens: int = TOKENS) -> Iterator[Event]:
    """Bits per byte of each model (by its displayed name) on each of `texts`, named as sources in a recipe.

    At most `tokens` of a text are read, in windows of the recipe's length spread over it. The last event is a
    Result with "bits_per_byte": {model: {text: figure}}, and the mean over the texts under "mean".
    """
    require_runnable(list(models.values()))
    scores: dict[str, dict[str, float]] = {}
    for done, (name, model) in enumerate(models.items()):
        checkpoint = _checkpoint_model(model).checkpoint
        recipe = checkpoint.recipe
        context = context_for_recipe(recipe, recipe.runtime.device)
        with torch.random.fork_rng(devices=[]):
            built = build_model(recipe.model, checkpoint.vocab)
        if not isinstance(built, LanguageModel):
            raise InputError(f"{name} is an encoder: it predicts no text", "evaluate language models")
        load_weights(built, Weights(model), model.path)
        built.leave_out(checkpoint.manifest.without)
        built = built.to(context.device).eval()
        figures: dict[str, float] = {}
        for text in texts:
            yield Progress("evaluate", done * len(texts) + len(figures), len(models) * len(texts), "texts")
            split = yield from held_out(checkpoint.recipe.data, checkpoint.tokenizer(), [text])
            length = recipe.data.sequence
            *_, score = evaluate_bits_per_byte(built, windows(split, length, max(1, tokens // length), ROWS), context)
            figures[text] = score.bits_per_byte
        scores[name] = figures | {"mean": sum(figures.values()) / len(figures)}
    yield Progress("evaluate", len(models) * len(texts), len(models) * len(texts), "texts")
    yield Result({"bits_per_byte": scores})


def _checkpoint_model(model: Model) -> CheckpointModel:
    while isinstance(model, View):
        model = model.inner
    return model  # type: ignore[return-value]  # `require_runnable` checks it
