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
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from synthe_core import adapter_files
from synthe_core.adapters import peft
from synthe_core.adapters.low_rank import Adapter, Folded, worn_tensors
from synthe_core.atomic import new_folder
from synthe_core.data.tokenizers import Tokenizer, load_tokenizer
from synthe_core.errors import InputError, closest
from synthe_core.manifest import NAME, Base, FileFacts, Manifest
from synthe_core.model.classifier import Classifier, Model, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe import Recipe

SHARD_BYTES = 5 * 10**9
CHECKPOINTS = "checkpoints"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BITS_PER_BYTE = "bits_per_byte"


class Checkpoint:
    """A checkpoint on disk. Nothing of it is read before it is asked for, and no file is used before its SHA-256 is
    checked; `path` is its folder. `base` says where the base of an adapter is, if it is not where the adapter says."""

    def __init__(self, path: Path, base: str | Path | None = None) -> None:
        self.path = path
        self.manifest = Manifest.read(path) if (path / NAME).is_file() else adapter_files.manifest_of(path)
        self._base = base
        self._checked: set[str] = set()
        for name, facts in self.manifest.files.items():
            file = path / name
            if not file.is_file():
                raise InputError(f"{file} is missing", "the checkpoint is damaged: use another of the run")
            if (size := file.stat().st_size) != facts.bytes:
                raise self._damaged(name, f"it has {size} bytes and should have {facts.bytes}")

    @classmethod
    def open(cls, path: str | Path, *, latest: bool = False, base: str | Path | None = None) -> Checkpoint:
        """A checkpoint folder, or of a run folder the best by validation (the newest with `latest`).

        With `base`, an adapter over that checkpoint; InputError where `path` is none, or one of another model.
        """
        path = Path(path)
        if base is not None:
            adapter = cls(cls.open(path, latest=latest).path, base)
            if adapter.adapter is None:
                raise InputError(f"{path} is a model of its own, no adapter", "leave out --adapter")
            return adapter
        if (path / NAME).is_file() or (path / peft.CONFIG).is_file():
            return cls(path)
        if not path.exists():
            raise InputError(f"no such checkpoint: {path}", _nearby(path))
        found = checkpoints(path)
        if not found:
            raise InputError(f"{path} holds no checkpoint", "give a run folder, or a checkpoint's own folder")
        return cls(found[-1]) if latest else cls(best(found) or found[-1])

    @cached_property
    def adapter(self) -> Adapter | None:
        """What an adapter changes of its base; None for a whole model."""
        if peft.CONFIG not in self.manifest.files:
            return None
        return peft.read(self.file(peft.CONFIG), self.file(peft.WEIGHTS))

    @cached_property
    def base(self) -> Checkpoint | None:
        """The model that an adapter changes, None for a whole model; InputError where it is gone or another by now."""
        if self.adapter is None:
            return None
        told = self.manifest.base
        where = adapter_files.where_base(self.path, self.manifest) if self._base is None else self._base
        base = Checkpoint.open(where)
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
        return Recipe.load(self.file("recipe.yaml"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: the sizes."""
        if self.base is not None:
            return self.base.config
        return json.loads(self.file("config.json").read_text(encoding="utf-8"))

    @property
    def vocab(self) -> int:
        return int(self.config["vocab_size"])

    def tokenizer(self) -> Tokenizer:
        """InputError for a model that has none."""
        if self.base is not None:
            return self.base.tokenizer()
        if "tokenizer.json" not in self.manifest.files:
            raise InputError(f"{self.path} has no tokenizer", "its model does not work on text")
        return load_tokenizer(self.file("tokenizer.json"))

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by name, each read when it is asked for; those of an adapter are its base's with it added."""
        if self.base is not None and self.adapter is not None:
            return Folded(self.base.tensors, self.adapter, self.path)
        return Tensors(self, "", WEIGHTS)

    def model(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LanguageModel:
        """The language model with its weights, in float32 unless told otherwise; InputError for an encoder.

        Of an adapter, the base with the adapter added into its weights: as fast as the base, and as large. To go from
        one adapter to another, load `base.model()` once and see `adapters.low_rank.wearing`.
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

    def _built(self, device: torch.device | str, dtype: torch.dtype | None) -> Model:
        with torch.random.fork_rng(devices=[]):  # building draws initial values: not from the caller's numbers
            model = build_model(self.recipe.model, self.vocab)
        load_weights(model, self.tensors, self.path)
        source = self if self.base is None or (self.path / NAME).is_file() else self.base
        model.leave_out(source.manifest.without)
        return model.to(device=device, dtype=dtype or torch.float32)

    @property
    def classes(self) -> list[str]:
        """The names of an encoder's classes, in the order of its logits; none for a language model."""
        return list(self.config.get("id2label", {}).values())

    @property
    def resumable(self) -> bool:
        return "training/state.json" in self.manifest.files

    def training_state(self) -> dict[str, Any]:
        """training/state.json; InputError for a checkpoint that holds weights only."""
        if not self.resumable:
            raise InputError(f"{self.path} holds weights only", "training cannot go on from it; begin a run from them")
        return json.loads(self.file("training/state.json").read_text(encoding="utf-8"))

    def training_tensors(self, name: str) -> Mapping[str, Tensor]:
        """training/`name`.safetensors, empty where there is none."""
        file = f"training/{name}.safetensors"
        return Tensors(self, "training/", f"{name}.safetensors") if file in self.manifest.files else {}

    def file(self, name: str) -> Path:
        """The path of a file of the checkpoint, after checking that it is what was written."""
        if name not in self.manifest.files:
            raise InputError(f"{self.path} has no {name}", "the checkpoint is damaged: use another of the run")
        if name not in self._checked:
            if FileFacts.of(self.path / name) != self.manifest.files[name]:
                raise self._damaged(name, "it is not what was written")
            self._checked.add(name)
        return self.path / name

    def _damaged(self, name: str, how: str) -> InputError:
        others = [p for p in checkpoints(self.path.parent.parent) if p != self.path]
        hint = f"remove it to use {others[-1]} instead" if others else "copy it again from where it came"
        return InputError(f"{self.path / name} is damaged: {how}", hint)


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file or of the files of an index, read one at a time."""

    def __init__(self, checkpoint: Checkpoint, folder: str, name: str) -> None:
        self._checkpoint = checkpoint
        self._open: dict[str, Any] = {}
        files = checkpoint.manifest.files
        if f"{folder}{name}.index.json" in files:
            index = json.loads(checkpoint.file(f"{folder}{name}.index.json").read_text(encoding="utf-8"))
            self._file = {tensor: f"{folder}{file}" for tensor, file in index["weight_map"].items()}
        else:
            self._file = dict.fromkeys(self._reader(f"{folder}{name}").keys(), f"{folder}{name}")

    def __getitem__(self, name: str) -> Tensor:
        return self._reader(self._file[name]).get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def _reader(self, file: str) -> Any:
        if file not in self._open:
            path = self._checkpoint.file(file)
            try:
                self._open[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged: {error}", "use another checkpoint of the run") from None
        return self._open[file]


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in (run / CHECKPOINTS).glob(f"step-*/{NAME}"))


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
    """Parameters and buffers by name; what is shared appears once, under its first name. Of a model that wears an
    adapter, the adapter's: the others are its base's, and stay there."""
    if factors := worn_tensors(model):
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
    for name in [*own, *tensors]:
        if name not in tensors and name.startswith(fresh):
            continue
        if name not in tensors:
            raise InputError(f"{source} has no tensor {name}, which the model needs", "its recipe is of another model")
        if name not in own:
            raise InputError(f"{source} has a tensor {name}, which the model has not", "its recipe is of another model")
        value = tensors[name]
        if value.shape != own[name].shape:
            raise InputError(
                f"{name} is {list(value.shape)} in {source} and {list(own[name].shape)} in the model",
                "the sizes of the recipe are not those of the checkpoint",
            )
        own[name].copy_(value)


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
    near = closest(path.name, [each.name for each in path.parent.iterdir() if each.is_dir()])
    return f"did you mean {path.parent / near}?" if near else "train one: synthe train recipes/tiny.yaml"
