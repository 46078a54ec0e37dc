"""A checkpoint: a folder that carries its own recipe. Every other verb takes a path to one and nothing else.

    model.safetensors      the weights (past 5 GB: several files and model.safetensors.index.json)
    recipe.yaml            as resolved
    config.json            the sizes, for other programs
    tokenizer.json         where one is used
    manifest.json          what it is, where it came from, and the SHA-256 of every file
    training/              what going on needs: state.json and safetensors files

A run folder holds its checkpoints in checkpoints/step-00000500 and may be named wherever a checkpoint may.

An adapter has adapter_config.json and adapter_model.safetensors, as PEFT writes them, in place of weights, sizes and
tokenizer: those are its base's, a checkpoint elsewhere that it names. It too may be named wherever a checkpoint may.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synthe_core.adapters import peft
from synthe_core.adapters.lora import Adapter, MergedTensors
from synthe_core.adapters.lora_linear import adapter_parameters
from synthe_core.data.tokenizers import CHAT, Tokenizer, read_tokenizer
from synthe_core.errors import InputError, closest
from synthe_core.model.classifier import Classifier, Model, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session
from synthe_core.model.skip_init import skip_init
from synthe_core.recipe.schema import Recipe
from synthe_core.registry import Table
from synthe_core.storage import adapter_files, yaml_text
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.manifest import NAME, Base, Manifest
from synthe_core.storage.sources import CHECKPOINTS, Folder, Source, Tensors, checkpoints, is_synapse
from synthe_core.storage.tensor_file import TensorFile

__all__ = ["CHECKPOINTS", "Checkpoint", "best", "checkpoints", "load_weights", "save", "weights"]

SHARD_BYTES = 5 * 10**9
EMBEDDING = "embedding.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BITS_PER_BYTE = "bits_per_byte"
SOURCES = Table("source of checkpoints", "synthe.sources", {"synapse": "synthe_core.packing.bundle:Bundle"})


class Checkpoint:
    """A checkpoint on disk, called `path`, whose files lie in `source`. Nothing is read before it is asked for, and no
    file is used before its SHA-256 is checked. `base`: where an adapter's is, if not where it says."""

    def __init__(self, source: Source | Path, base: str | Path | None = None) -> None:
        self.source = Folder(source) if isinstance(source, Path) else source
        self.path = self.source.path
        self.manifest = self.source.manifest
        self._base = base

    @classmethod
    def open(cls, path: str | Path, *, latest: bool = False, base: str | Path | None = None) -> Checkpoint:
        """A checkpoint folder, or of a run folder the best by validation (the newest with `latest`); or a file (or
        folder) in the .synapse format, as it is.

        With `base`, an adapter over that checkpoint; InputError where `path` is none, or one of another model.
        """
        path = Path(path)
        if base is not None:
            adapter = cls(cls.open(path, latest=latest).path, base)
            if adapter.adapter is None:
                raise InputError(f"{path} is a model of its own, no adapter", "leave out --adapter")
            return adapter
        if path.is_file() or is_synapse(path):
            return cls(SOURCES["synapse"](path))
        if (path / NAME).is_file() or (path / peft.CONFIG).is_file():
            return cls(path)
        if not path.exists():
            raise InputError(f"no such checkpoint: {path}", _nearby(path))
        found = checkpoints(path)
        if not found:
            raise InputError(f"{path} holds no checkpoint", "give a run folder, or a checkpoint's own folder")
        return cls(found[-1] if latest else best(found) or found[-1])

    @cached_property
    def adapter(self) -> Adapter | None:
        """What an adapter changes of its base; None for a whole model."""
        if peft.CONFIG not in self.manifest.files:
            return None
        return peft.read(*(self.source.where(name)[0] for name in (peft.CONFIG, peft.WEIGHTS)))

    @cached_property
    def base(self) -> Checkpoint | None:
        """The model that an adapter changes, None for a whole model; InputError where it is gone or another by now."""
        if self.adapter is None:
            return None
        told = self.manifest.base
        base = Checkpoint.open(where := self._base or adapter_files.where_base(self.path, self.manifest))
        if base.adapter is not None:
            raise InputError(
                f"{where} is an adapter itself, and not the model that {self.path} changes", adapter_files.OTHER
            )
        if told is not None and told.sha256 is not None and told.sha256 != base.digest:
            raise InputError(
                f"{base.path} is not the model that {self.path} is an adapter of: its weights are others",
                adapter_files.OTHER,
            )
        return base

    @property
    def digest(self) -> str:
        """SHA-256 that stands for the weights, or the adapter: of the digests of the files that hold them."""
        held = {name: facts.sha256 for name, facts in self.manifest.files.items() if "/" not in name}
        text = json.dumps({name: sha for name, sha in held.items() if name.endswith(".safetensors")}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def recipe(self) -> Recipe:
        if "recipe.yaml" not in self.manifest.files and self.base is not None:
            return self.base.recipe
        return Recipe.from_source(yaml_text.parse(self._text("recipe.yaml"), str(self.path / "recipe.yaml")))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: the sizes."""
        if self.base is not None:
            return self.base.config
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
        if self.base is not None:
            return self.base.tokenizer()
        if "tokenizer.json" not in self.manifest.files:
            raise InputError(f"{self.path} has no tokenizer", "its model does not work on text")
        chat = self._text(CHAT) if CHAT in self.manifest.files else None
        return read_tokenizer(self.source.read("tokenizer.json"), str(self.path / "tokenizer.json"), chat)

    @cached_property
    def tensors(self) -> Tensors | MergedTensors:
        """The weights by name, each read when it is asked for; of an adapter, its base's with the adapter merged."""
        if self.base is not None and self.adapter is not None:
            return MergedTensors(self.base.tensors, self.adapter, self.path)
        return self._stored

    @cached_property
    def _stored(self) -> Tensors:
        return Tensors(self.source, "", WEIGHTS)

    def model(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LanguageModel:
        """The language model with its weights, in float32 unless told otherwise; InputError for an encoder.

        Of an adapter, the base with the adapter merged. For several over one base see `adapters.lora_linear.attach`.
        """
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
        (self.base or self).check_sizes()
        with skip_init():
            model = build_model(self.recipe.model, self.vocab)
        load_weights(model, self.tensors, self.path)
        source = self if self.base is None or (self.path / NAME).is_file() else self.base
        model.leave_out(source.manifest.without)
        return model.to(device=device, dtype=dtype or torch.float32)

    def check_sizes(self) -> None:
        """InputError where recipe and weights are of two models. A recipe may come from anywhere: a model is given
        memory only when weights of its size are there."""
        spec, given = self.recipe.model, self._stored
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


def best(found: list[Path]) -> Path | None:
    """The one with the fewest bits per byte in validation (an encoder: the least loss); None if none was validated."""
    scored = {}
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
    """Parameters and buffers by name; what is shared appears once, under its first name. Of a model with an
    adapter attached, the adapter's: the others are its base's, and stay there."""
    if factors := adapter_parameters(model):
        return {name: tensor.detach() for name, tensor in factors.items()}
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
    base: Checkpoint | None = None,
    training: Mapping[str, Mapping[str, Tensor]] | None = None,
    state: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Checkpoint:
    """Writes a checkpoint, whole or not at all; `manifest.files` is filled in here.

    classes: the names of an encoder's classes, in the order of its logits.
    base: makes it an adapter of that model, whose factors are the `tensors`.
    training: name -> tensors, written as training/`name`.safetensors; state: JSON for training/state.json.
    Raises WorkError where the disk is full; what was at `path` before is then still there.
    """
    with new_folder(path) as folder:
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        if base is not None and recipe.train.lora is not None:
            where = adapter_files.write(folder, tensors, recipe.train.lora, path, base.path)
            manifest = manifest.model_copy(update={"kind": "adapter", "base": Base(path=where, sha256=base.digest)})
        else:
            write_tensors(folder, tensors, shard_bytes)
            (folder / "config.json").write_text(_json(sizes(recipe, vocab, classes)), encoding="utf-8")
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


def sizes(recipe: Recipe, vocab: int, classes: Sequence[str]) -> dict[str, Any]:
    """The content of config.json."""
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


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
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
