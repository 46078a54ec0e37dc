"""Reading a checkpoint: its recipe, tokenizer, tensors and model, each when it is first used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.adapters import peft
from synthe_core.adapters.lora import Adapter, MergedTensors
from synthe_core.data.tokenizer_config import BESIDE
from synthe_core.data.tokenizers import Tokenizer, read_tokenizer
from synthe_core.errors import InputError
from synthe_core.model.classifier import Classifier, Model, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.published_spec import PublishedSpec, text_config
from synthe_core.model.session import Session, set_weights_digest
from synthe_core.model.skip_init import skip_init
from synthe_core.model.without_storage import shapes_only, without_storage
from synthe_core.recipe.schema import Recipe
from synthe_core.registry import Table
from synthe_core.storage import adapter_files
from synthe_core.storage.checkpoint.locate import best_checkpoint, checkpoints, missing_checkpoint
from synthe_core.storage.checkpoint.quantized import load_quantized
from synthe_core.storage.checkpoint.sources import FORMATS, CheckpointSource, FolderSource, StoredTensors
from synthe_core.storage.checkpoint.weights import check_names, check_shape, load_weights, weights
from synthe_core.storage.hub.model_id import hub_id
from synthe_core.storage.manifest import MANIFEST
from synthe_core.storage.path_format import format_of
from synthe_core.storage.tensor_file import TensorFile
from synthe_core.storage.yaml_reader import parse_yaml
from synthe_core.units import format_size

LEARNERS = "generate, chat, serve, eval, train, pack, profile-vram and merge take it; what reads learners cannot"
EMBEDDING = "embedding.weight"
WEIGHTS = "model.safetensors"
LARGEST_STATE = 1 << 30
STATE_SHARE = 64
"""Bytes of state of one text that any model may have, and that it may have for each of its weights."""
ORIGINAL = "original"
"""The key in the manifest of quantised weights: the digest of those that they were made from."""

IMPORTED = Table(
    "format of published models",
    "synthe.imported_formats",
    dict.fromkeys(("gguf", "huggingface"), "synthe_core.interop.imported_adapter:fitted"),
)
"""What puts an adapter of a published model on the maps of the checkpoint that was imported from it."""

TRAINING_STATE: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step", "tokens", "validated", "micro_batch", "stage"), (int,)),
    **dict.fromkeys(("device", "precision"), (str,)),
    **dict.fromkeys(("cursor", "tuned_kernels", "text"), (dict,)),
    "seconds": (int, float),
    "windows": (int, type(None)),
}
"""What training/state.json has, and the types of it."""


class Checkpoint:
    """A checkpoint on disk. Each file is read when it is first used, after its SHA-256 has been checked.

    source: where its files are; base: the path of an adapter's base, if not the one that the adapter names.
    """

    def __init__(self, source: CheckpointSource | Path, base: str | Path | None = None) -> None:
        self.source = FolderSource(source) if isinstance(source, Path) else source
        self.path = self.source.path
        self.manifest = self.source.manifest
        self._base = base

    @classmethod
    def open(cls, path: str | Path, *, latest: bool = False, base: str | Path | None = None) -> Checkpoint:
        """Opens a checkpoint folder, the best checkpoint of a run folder by validation (with `latest` the newest), a
        file or folder in the .synapse format, a GGUF file, a model folder of transformers, or a model of the hub by its
        id, which is fetched if the cache does not have it.

        With `base`, opens an adapter over that checkpoint. InputError if `path` is not a checkpoint or not an adapter.
        """
        path = Path(path)
        if base is not None:
            adapter = cls(cls.open(path, latest=latest).path, base)
            if adapter.adapter is None:
                raise InputError(f"{path} is a model of its own, no adapter", "leave out --adapter")
            return adapter
        if (kind := format_of(path)) is not None:
            return cls(FORMATS[kind](path))
        if (path / MANIFEST).is_file() or (path / peft.CONFIG).is_file():
            return cls(path)
        if not path.exists():
            if hub_id(str(path)) is not None:
                return cls(FORMATS["hub"](path))
            raise missing_checkpoint(path)
        paths = checkpoints(path)
        if not paths:
            raise InputError(f"{path} holds no checkpoint", "give a run folder, or a checkpoint's own folder")
        return cls(paths[-1] if latest else best_checkpoint(paths) or paths[-1])

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter; None for a whole model."""
        if peft.CONFIG not in self.manifest.files:
            return None
        return peft.read(*(self.source.locate(name)[0] for name in (peft.CONFIG, peft.WEIGHTS)))

    @cached_property
    def base(self) -> Checkpoint | None:
        """The base of an adapter, None for a whole model. InputError if it is missing or its weights are others."""
        if self.adapter is None:
            return None
        reference = self.manifest.base
        path = self._base or adapter_files.locate_base(self.path, self.manifest)
        base = Checkpoint.open(path)
        if base.adapter is not None:
            raise InputError(
                f"{path} is an adapter itself, and not the model that {self.path} changes", adapter_files.OTHER
            )
        adapter_files.check_base(self.path, reference.sha256 if reference else None, base.base_digests, base.path)
        return base

    @cached_property
    def fitted_adapter(self) -> Adapter | None:
        """The adapter, on the maps that its base has here: one of PEFT's names those of the published model."""
        if self.adapter is None or self.base is None:
            return None
        return self.base.fitted(self.adapter, self.path)

    def fitted(self, adapter: Adapter, path: Path) -> Adapter:
        """An adapter of this model, on the maps that the model has here; path: the adapter's, for messages."""
        origin = str(self.manifest.published.get("format"))
        if self.source.on_disk and origin in IMPORTED:
            fitted: Adapter = IMPORTED[origin](adapter, self, path)
            return fitted
        return self.source.fitted(adapter, path)

    @property
    def digest(self) -> str:
        """SHA-256 of the digests of the files with the weights, or with the adapter."""
        files = {
            name: digest.sha256
            for name, digest in self.manifest.files.items()
            if "/" not in name and name.endswith(".safetensors")
        }
        return digest_of(files)

    @property
    def base_digests(self) -> tuple[str, ...]:
        """The digests that an adapter of this model may record: of its weights, of what they were quantised from, or of
        the published model that they were converted from."""
        others = (getattr(self.manifest, ORIGINAL, None), self.published.get("digest"))
        return (self.digest, *(each for each in others if isinstance(each, str)))

    @property
    def weights_digest(self) -> str:
        """Identifies the weights of the model: the digest, of an adapter with that of its base. A published model and
        what `import` made of it have one."""
        if self.base is None:
            origin = self.published.get("digest")
            return origin if isinstance(origin, str) and not hasattr(self.manifest, ORIGINAL) else self.digest
        config = self.manifest.files[peft.CONFIG].sha256
        return hashlib.sha256(f"{self.base.weights_digest} {self.digest} {config}".encode()).hexdigest()

    @cached_property
    def recipe(self) -> Recipe:
        if "recipe.yaml" not in self.manifest.files and self.base is not None:
            return self.base.recipe
        return self.recipe_with(())

    def recipe_with(self, overrides: Sequence[str]) -> Recipe:
        """Its own recipe with `key.path=value` overrides."""
        return Recipe.from_source(parse_yaml(self._text("recipe.yaml"), str(self.path / "recipe.yaml")), overrides)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: the sizes."""
        if self.base is not None:
            return self.base.config
        try:
            values = json.loads(self._text("config.json"))
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict) and "vocab_size" not in values:
            values["vocab_size"] = text_config(values).get("vocab_size")
        if not (isinstance(values, dict) and type(values.get("vocab_size")) is int):
            raise self.source.damaged("config.json", "it has no vocab_size")
        return values

    @property
    def published(self) -> dict[str, Any]:
        """Where an imported model came from: its format, architecture and `digest`, and the `context` it was trained
        for, if known; empty for a model that was trained here."""
        return (self.base or self).manifest.published

    @property
    def context(self) -> int | None:
        """The longest text that a published model, or the one that this was made from, is made for; None for a model
        of ours."""
        stated = (self.base or self).manifest.context or self.published.get("context")
        return stated if type(stated) is int and stated > 0 else None

    @property
    def vocab(self) -> int:
        return self.config["vocab_size"]

    def tokenizer(self) -> Tokenizer:
        """InputError for a model that has none."""
        if self.base is not None:
            return self.base.tokenizer()
        if "tokenizer.json" not in self.manifest.files:
            raise InputError(f"{self.path} has no tokenizer", "its model does not work on text")
        if (tokenizer := self.source.tokenizer()) is not None:
            return tokenizer
        beside = {name: self.source.read(name) for name in BESIDE if name in self.manifest.files}
        return read_tokenizer(self.source.read("tokenizer.json"), str(self.path / "tokenizer.json"), beside)

    @cached_property
    def tensors(self) -> StoredTensors | MergedTensors:
        """The weights by name, each read when it is used; of an adapter, its base's with the adapter merged."""
        if self.base is not None and self.fitted_adapter is not None:
            return MergedTensors(self.base.tensors, self.fitted_adapter, self.path)
        return self._stored

    @cached_property
    def _stored(self) -> StoredTensors:
        return StoredTensors(self.source, "", WEIGHTS)

    def model(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, format: str | None = None
    ) -> LanguageModel:
        """The language model with its weights, in float32 by default. InputError for an encoder.

        Of an adapter, the base with the adapter merged. For several over one base see `adapters.lora_linear.attach`.
        format: matrices stay quantised in this one of `quantization.quantize`, packed for products by integers.
        """
        return self._language_model(self._built(device, dtype, format))

    def _language_model(self, model: Model) -> LanguageModel:
        if not isinstance(model, LanguageModel):
            raise InputError(
                f"{self.path} is an encoder: an encoder does not write text", "give the checkpoint of a language model"
            )
        return model

    def classifier(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Classifier:
        """The encoder with its weights, in float32 by default. InputError for a language model."""
        model = self._built(device, dtype)
        if not isinstance(model, Classifier):
            raise InputError(f"{self.path} is a language model, which has no classes", "give an encoder's checkpoint")
        return model

    def session(self, named: Path, model: LanguageModel) -> Session:
        """The session in the file `named`, or of that name among those that the checkpoint carries."""
        member = f"sessions/{named}.safetensors"
        if named.exists() or member not in self.manifest.files:
            return Session.load(named, model)
        return Session.of(TensorFile(*self.source.locate(member), str(self.path / member)), model)

    def _built(self, device: torch.device | str, dtype: torch.dtype | None, format: str | None = None) -> Model:
        self._check_runnable()
        if format is None:
            with skip_init():
                model = build_model(self.recipe.model, self.vocab)
            load_weights(model, self.tensors, self.path)
        else:
            with without_storage():
                model = build_model(self.recipe.model, self.vocab)
            load_quantized(model, self.tensors, self.path, format, products=torch.device(device).type)
        self._finish(model)
        model.to(device=device, dtype=dtype or torch.float32)
        return model

    def empty_model(self) -> LanguageModel:
        """The language model, whose large tensors have no storage yet (see `model.quantized_model`)."""
        self._check_runnable()
        with without_storage():
            model = build_model(self.recipe.model, self.vocab)
        self._finish(model)
        return self._language_model(model)

    def _check_runnable(self) -> None:
        if isinstance(self.recipe.model, PublishedSpec):
            raise InputError(
                f"{self.path} is a {self.recipe.model.architecture}, which only transformers runs", LEARNERS
            )
        (self.base or self).check_sizes()

    def _finish(self, model: Model) -> None:
        source = self if self.base is None or (self.path / MANIFEST).is_file() else self.base
        model.leave_out(source.manifest.without)
        set_weights_digest(model, self.weights_digest)

    def check_sizes(self) -> None:
        """InputError if recipe and weights belong to different models.

        A recipe may be hostile: memory for a model is allocated only if weights of its size are present.
        """
        spec, stored = self.recipe.model, self._stored
        if isinstance(spec, PublishedSpec):  # its library checks them when it loads them
            return
        width = stored.shape(EMBEDDING)[-1:] if EMBEDDING in stored else ()
        learners = sum(len(spec.learners_of(index)) for index in range(spec.blocks))
        if learners > len(stored) or (width and width[0] != spec.width):
            raise InputError(f"{self.path} holds no weights of the model in its recipe.yaml", "they are of two models")
        try:
            with shapes_only():
                model: Any = build_model(spec, self.vocab)
            own = weights(model)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the recipe of {self.path} makes no model: {' '.join(str(error).split())[:200]}"
            ) from None
        check_names(own, stored, self.path)
        for name, tensor in own.items():
            check_shape(name, tensor, stored.shape(name), self.path)
        size, state = sum(tensor.numel() for tensor in own.values()), model.state_bytes(1)
        if state > LARGEST_STATE + STATE_SHARE * size:
            raise InputError(
                f"the recipe of {self.path} makes a state of {format_size(state)} for one text, of {size:,} weights",
                "this checkpoint is not to be trusted: get another copy of it",
            )

    @property
    def classes(self) -> list[str]:
        """The names of an encoder's classes, in the order of its logits; none for a language model."""
        names = self.config.get("id2label", {})
        return [str(name) for name in names.values()] if isinstance(names, dict) else []

    @property
    def resumable(self) -> bool:
        return "training/state.json" in self.manifest.files

    def training_state(self) -> dict[str, Any]:
        """training/state.json. InputError for a checkpoint with weights only."""
        if not self.resumable:
            raise InputError(f"{self.path} holds weights only", "training cannot go on from it; begin a run from them")
        name = "training/state.json"
        try:
            values = json.loads(self._text(name))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise self.source.damaged(name, "it is no JSON object")
        for key, kinds in TRAINING_STATE.items():
            if not isinstance(values.get(key), kinds) or (bool not in kinds and isinstance(values[key], bool)):
                raise self.source.damaged(name, f"{key} is missing, or of another type")
        return values

    def training_tensors(self, name: str) -> Mapping[str, Tensor]:
        """training/`name`.safetensors; empty if there is none."""
        if f"training/{name}.safetensors" not in self.manifest.files:
            return {}
        return StoredTensors(self.source, "training/", f"{name}.safetensors")

    def _text(self, name: str) -> str:
        try:
            return self.source.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.source.damaged(name, f"it is not UTF-8 text (byte {error.start})") from None


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of weights, of the SHA-256 of each file with them."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
