"""A checkpoint: a folder that carries its own recipe. Every other verb takes a path to one and nothing else.

    model.safetensors      the weights (past 5 GB: several files and model.safetensors.index.json)
    recipe.yaml            as resolved
    config.json            the sizes, for other programs
    tokenizer.json         where one is used
    manifest.json          what it is, where it came from, and the SHA-256 of every file
    training/              what going on needs: state.json and safetensors files

A run folder holds its checkpoints in checkpoints/step-00000500 and may be named wherever a checkpoint may.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synthe_core import yaml_text
from synthe_core.atomic import new_folder
from synthe_core.data.tokenizers import Tokenizer, read_tokenizer
from synthe_core.errors import InputError, closest
from synthe_core.manifest import NAME, Manifest
from synthe_core.model.classifier import Classifier, Model, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session
from synthe_core.recipe import Recipe
from synthe_core.registry import Table
from synthe_core.source import CHECKPOINTS, Folder, Source, checkpoints, is_synapse
from synthe_core.tensor_file import TensorFile

__all__ = ["CHECKPOINTS", "Checkpoint", "best", "checkpoints", "load_weights", "save", "weights"]

SHARD_BYTES = 5 * 10**9
EMBEDDING = "embedding.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BITS_PER_BYTE = "bits_per_byte"
SOURCES = Table("source of checkpoints", "synthe.sources", {"synapse": "synthe_core.packing.bundle:Bundle"})


class Checkpoint:
    """A checkpoint on disk. Nothing of it is read before it is asked for, and no file is used before its SHA-256 is
    checked; `path` is what it is called, `source` where its files lie."""

    def __init__(self, source: Source | Path) -> None:
        self.source = Folder(source) if isinstance(source, Path) else source
        self.path = self.source.path
        self.manifest = self.source.manifest

    @classmethod
    def open(cls, path: str | Path, *, latest: bool = False) -> Checkpoint:
        """A checkpoint folder, or of a run folder the best by validation (the newest with `latest`); or a file (or
        folder) in the .synapse format, as it is."""
        path = Path(path)
        if path.is_file() or is_synapse(path):
            return cls(SOURCES["synapse"](path))
        if (path / NAME).is_file():
            return cls(path)
        if not path.exists():
            raise InputError(f"no such checkpoint: {path}", _nearby(path))
        found = checkpoints(path)
        if not found:
            raise InputError(f"{path} holds no checkpoint", "give a run folder, or a checkpoint's own folder")
        return cls(found[-1] if latest else best(found) or found[-1])

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.from_source(yaml_text.parse(self._text("recipe.yaml"), str(self.path / "recipe.yaml")))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: the sizes."""
        try:
            values = json.loads(self._text("config.json"))
        except (ValueError, RecursionError):
            values = None
        if not (isinstance(values, dict) and type(values.get("vocab_size")) is int):
            raise self.source.damaged("config.json", "it does not tell the model's vocab_size")
        return values

    @property
    def vocab(self) -> int:
        return self.config["vocab_size"]

    def tokenizer(self) -> Tokenizer:
        """InputError for a model that has none."""
        if "tokenizer.json" not in self.manifest.files:
            raise InputError(f"{self.path} has no tokenizer", "its model does not work on text")
        return read_tokenizer(self.source.read("tokenizer.json"), str(self.path / "tokenizer.json"))

    @cached_property
    def tensors(self) -> Tensors:
        """The weights by name, each read when it is asked for."""
        return Tensors(self.source, "", WEIGHTS)

    def model(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LanguageModel:
        """The language model with its weights, in float32 unless told otherwise; InputError for an encoder."""
        model = self._built(device, dtype)
        if not isinstance(model, LanguageModel):
            raise InputError(
                f"{self.path} is an encoder: an encoder does not write text", "give the checkpoint of a language model"
            )
        return model

    def classifier(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Classifier:
        """The encoder with its weights, in float32 unless told otherwise; InputError for a language model."""
        model = self._built(device, dtype)
        if not isinstance(model, Classifier):
            raise InputError(f"{self.path} is a language model, which has no classes", "give an encoder's checkpoint")
        return model

    def session(self, named: Path, model: LanguageModel) -> Session:
        """The session in the file `named`, or of that name among those that the checkpoint carries."""
        member = f"sessions/{named}.safetensors"
        if named.exists() or member not in self.manifest.files:
            return Session.load(named, model)
        return Session.of(TensorFile(*self.source.where(member), str(self.path / member)), model)

    def _built(self, device: torch.device | str, dtype: torch.dtype | None) -> Model:
        self.check_sizes()
        with torch.random.fork_rng(devices=[]):  # building draws initial values: not from the caller's numbers
            model = build_model(self.recipe.model, self.vocab)
        load_weights(model, self.tensors, self.path)
        model.leave_out(self.manifest.without)
        return model.to(device=device, dtype=dtype or torch.float32)

    def check_sizes(self) -> None:
        """InputError where recipe and weights are of two models. A recipe may come from anywhere: a model is given
        memory only when weights of its size are there."""
        spec, given = self.recipe.model, self.tensors
        wide = given.shape(EMBEDDING)[-1:] if EMBEDDING in given else ()
        if spec.blocks > len(given) or (wide and wide[0] != spec.width):
            raise InputError(f"{self.path} holds no weights of the model in its recipe.yaml", "they are of two models")
        try:
            own = weights(self.recipe.meta_model(self.vocab))
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the recipe of {self.path} makes no model: {' '.join(str(error).split())[:200]}"
            ) from None
        _check_names(own, given, self.path)
        for name, tensor in own.items():
            _check_shape(name, tensor, given.shape(name), self.path)

    @property
    def classes(self) -> list[str]:
        """The names of an encoder's classes, in the order of its logits; none for a language model."""
        names = self.config.get("id2label", {})
        return [str(name) for name in names.values()] if isinstance(names, dict) else []

    @property
    def resumable(self) -> bool:
        return "training/state.json" in self.manifest.files

    def training_state(self) -> dict[str, Any]:
        """training/state.json; InputError for a checkpoint that holds weights only."""
        if not self.resumable:
            raise InputError(f"{self.path} holds weights only", "training cannot go on from it; begin a run from them")
        return json.loads(self._text("training/state.json"))

    def training_tensors(self, name: str) -> Mapping[str, Tensor]:
        """training/`name`.safetensors, empty where there is none."""
        file = f"training/{name}.safetensors"
        return Tensors(self.source, "training/", f"{name}.safetensors") if file in self.manifest.files else {}

    def _text(self, name: str) -> str:
        try:
            return self.source.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.source.damaged(name, f"it is not UTF-8 text (byte {error.start})") from None


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file or of the files of an index, read one at a time."""

    def __init__(self, source: Source, folder: str, name: str) -> None:
        self._source = source
        self._open: dict[str, Any] = {}
        index = f"{folder}{name}.index.json"
        if index in source.manifest.files:
            try:
                places = json.loads(source.read(index))["weight_map"].items()
                self._file = {str(tensor): f"{folder}{file}" for tensor, file in places}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise source.damaged(index, "it is no index of tensors") from None
        else:
            self._file = dict.fromkeys(self._reader(f"{folder}{name}"), f"{folder}{name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return self._holding(name).shape(name)

    def __getitem__(self, name: str) -> Tensor:
        return self._holding(name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def _holding(self, name: str) -> Any:
        file = self._file[name]
        reader = self._reader(file)
        if name not in reader:
            raise self._source.damaged(file, f"it has no tensor {name}, which the index places there")
        return reader

    def _reader(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = self._source.tensors(file)
        return self._open[file]


def best(found: list[Path]) -> Path | None:
    """The one with the fewest bits per byte in validation (an encoder: the least loss); None if none was validated."""
    scored: dict[Path, float] = {}
    for path in found:
        try:
            manifest = Manifest.read(path)
        except InputError:  # a damaged one is said to be so when it is opened
            continue
        score = manifest.metrics.get(BITS_PER_BYTE, manifest.metrics.get("loss"))
        if score is not None:
            scored[path] = score
    return min(scored, key=lambda path: scored[path]) if scored else None


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; what is shared appears once, under its first name."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path, fresh: tuple[str, ...] = ()) -> None:
    """Copies `tensors` into the model; InputError that names the first tensor that does not belong.

    What begins with one of `fresh` keeps the model's initial values where the source has none of it.
    """
    own = weights(model)
    _check_names(own, tensors, source, fresh)
    for name, target in own.items():
        if name in tensors:
            value = tensors[name]
            _check_shape(name, target, tuple(value.shape), source)
            target.copy_(value)


def _check_names(own: Iterable[str], given: Iterable[str], source: Path, fresh: tuple[str, ...] = ()) -> None:
    own, given = dict.fromkeys(own), set(given)
    for name in own:
        if name not in given and not name.startswith(fresh):
            raise InputError(f"{source} has no tensor {name}, which the model needs", "its recipe is of another model")
    for name in sorted(given - own.keys()):
        raise InputError(f"{source} has a tensor {name}, which the model has not", "its recipe is of another model")


def _check_shape(name: str, own: Tensor, given: tuple[int, ...], source: Path) -> None:
    if given != tuple(own.shape):
        raise InputError(
            f"{name} is {list(given)} in {source} and {list(own.shape)} in the model",
            "the sizes of the recipe are not those of the checkpoint",
        )


def save(
    path: Path,
    *,
    recipe: Recipe,
    vocab: int,
    tensors: Mapping[str, Tensor],
    manifest: Manifest,
    tokenizer: Tokenizer | None = None,
    classes: Sequence[str] = (),
    training: Mapping[str, Mapping[str, Tensor]] | None = None,
    state: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Checkpoint:
    """Writes a checkpoint, whole or not at all; `manifest.files` is filled in here.

    classes: the names of an encoder's classes, in the order of its logits.
    training: name -> tensors, written as training/`name`.safetensors; state: JSON for training/state.json.
    Raises WorkError where the disk is full; what was at `path` before is then still there.
    """
    with new_folder(path) as folder:
        _write_tensors(folder, tensors, shard_bytes)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        (folder / "config.json").write_text(_json(_config(recipe, vocab, classes)), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)
        if state is not None:
            (folder / "training").mkdir()
            (folder / "training" / "state.json").write_text(_json(state), encoding="utf-8")
            for name, group in (training or {}).items():
                if group:
                    save_file(_plain(group), folder / "training" / f"{name}.safetensors")
        for file in folder.rglob("*.safetensors"):
            shutil.copymode(folder / "recipe.yaml", file)  # the library makes them private
        (folder / NAME).write_text(manifest.with_files(folder).model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Checkpoint(path)


def _config(recipe: Recipe, vocab: int, classes: Sequence[str]) -> dict[str, Any]:
    labels = {"id2label": {str(index): name for index, name in enumerate(classes)}} if classes else {}
    return labels | {
        "model_type": "synthe",
        "vocab_size": vocab,
        "hidden_size": recipe.model.width,
        "num_hidden_layers": recipe.model.blocks,
        "tie_word_embeddings": recipe.model.tie,
        "torch_dtype": "float32",
        "model": recipe.model.model_dump(mode="json"),
    }


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """One file, or shards of at most `shard_bytes` (a larger tensor is a shard of its own) with an index."""
    shards: list[list[str]] = [[]]
    used = total = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        total += size
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        save_file(_plain(tensors), folder / WEIGHTS, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(_plain({name: tensors[name] for name in names}), folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(_json({"metadata": {"total_size": total}, "weight_map": places}), encoding="utf-8")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _nearby(path: Path) -> str | None:
    """The hint for a folder that is not there."""
    if not path.parent.is_dir():
        return "train one: synthe train recipes/tiny.yaml"
    known = [each.name for each in path.parent.iterdir() if each.is_dir() or each.suffix == ".synapse"]
    near = closest(path.name, known)
    return f"did you mean {path.parent / near}?" if near else "train one: synthe train recipes/tiny.yaml"
