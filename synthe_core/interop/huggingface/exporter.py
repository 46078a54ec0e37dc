"""The verb `export hf`: converts a checkpoint to a Hugging Face model folder with the same logits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.interop.huggingface.export_config import NoArchitecture, config_of
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.families.plan import Part
from synthe_core.interop.huggingface.published import Config
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.checkpoint import Checkpoint, weights
from synthe_core.storage.checkpoint.write import model_config, write_tensors
from synthe_core.storage.claim import claim
from synthe_core.storage.finite import check_finite
from synthe_core.storage.path_format import ARCHITECTURE
from synthe_core.storage.run_folder import taken

SHARD_BYTES = 5 * 10**9


def export_hf(source: Path, *, out: Path | None = None) -> Iterator[Event]:
    """Writes the checkpoint `source` as a folder that transformers loads, and yields events; the last is a Result.

    A model that a published architecture computes is written as that one, which needs nothing of ours. Any other is
    written as `SyntheForCausalLM`, which transformers loads where synthe is installed.

    out: the folder, which must be empty or new; exports/NAME by default. InputError for an encoder, and for a model of
    an early stage of training.
    """
    checkpoint = Checkpoint.open(source)
    recipe = checkpoint.recipe
    model = language_model(checkpoint)
    reason = None
    try:
        values = config_of(model, trained_length(checkpoint))
    except NoArchitecture as error:
        reason, values = error.message, model_config(recipe, checkpoint.vocab, (), checkpoint.context)
    tokenizer = checkpoint.tokenizer() if "tokenizer.json" in checkpoint.manifest.files else None
    if tokenizer is not None:
        values |= {"bos_token_id": tokenizer.begin, "eos_token_id": tokenizer.end}
    if reason is not None:
        yield Notice(f"{reason}; transformers loads the folder as {ARCHITECTURE} where synthe is installed")
    path = out or Path("exports") / recipe.name
    with claim(path, parents=True):
        if taken(path):
            raise InputError(f"{path} exists already", "name another folder with --out, or remove it")
        yield from _export(path, checkpoint, model, values, tokenizer)


def _export(
    path: Path, checkpoint: Checkpoint, model: LanguageModel, values: dict[str, Any], tokenizer: Tokenizer | None
) -> Iterator[Event]:
    """Writes the folder at `path`, which is claimed."""
    architecture = values["architectures"][0]
    yield Notice(f"{architecture}: {model.parameter_count():,} parameters")
    own = architecture == ARCHITECTURE
    if model.confidence is not None and not own:
        yield Notice("the confidence head is left out: no published architecture has one", "warning")
    tensors = OwnTensors(checkpoint, model) if own else PublishedTensors(checkpoint, model, values)
    yield Progress("export", 0, len(tensors), "tensors")
    with new_folder(path, claimed=True) as folder:
        write_tensors(folder, tensors, SHARD_BYTES)
        (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        if tokenizer is None:
            yield Notice(f"{checkpoint.path} has no tokenizer, and so the folder has none", "warning")
        else:
            tokenizer.save(folder)
            content = json.dumps(tokenizer.generation_config) + "\n"
            (folder / "generation_config.json").write_text(content, encoding="utf-8")
    yield Progress("export", len(tensors), len(tensors), "tensors")
    needs = "transformers and synthe" if own else "transformers"
    yield Result({"architecture": architecture, "parameters": model.parameter_count(), "needs": needs}, path)


def language_model(checkpoint: Checkpoint) -> LanguageModel:
    """The model without storage. InputError for an encoder, and for an early stage of training."""
    path = checkpoint.path
    if checkpoint.manifest.without:
        raise InputError(
            f"{path} is of an early stage of training: {', '.join(checkpoint.manifest.without)} is not in use yet",
            "export a checkpoint of the last stage",
        )
    if isinstance(checkpoint.recipe.model, PublishedSpec):
        kind = checkpoint.recipe.model.architecture
        raise InputError(f"{path} is a {kind} of transformers already, and no model of our learners", "copy its files")
    model: Any = checkpoint.recipe.meta_model(checkpoint.vocab)
    if not isinstance(model, LanguageModel):
        raise InputError(f"{path} is an encoder, which is not a language model", "give a language model's checkpoint")
    return model


def trained_length(checkpoint: Checkpoint) -> int:
    """The longest text that a model was trained for."""
    return int(checkpoint.context or checkpoint.recipe.data.sequence)


class OwnTensors(Mapping[str, Tensor]):
    """The tensors under our own names, in float32, checked when they are read."""

    def __init__(self, checkpoint: Checkpoint, model: LanguageModel) -> None:
        self._tensors, self._path, self._names = checkpoint.tensors, checkpoint.path, list(weights(model))

    def __getitem__(self, name: str) -> Tensor:
        tensor = check_finite(name, self._tensors[name], self._path)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PublishedTensors(Mapping[str, Tensor]):
    """The tensors under their published names, each made of ours when it is read."""

    def __init__(self, checkpoint: Checkpoint, model: LanguageModel, values: dict[str, Any]) -> None:
        self._ours, self._model, self._path = checkpoint.tensors, model, checkpoint.path
        self._sources: dict[str, tuple[str, slice]] = {}  # published name -> our name, and its rows
        layout = plan(Config(Path("config.json"), values))
        self._head = layout.head
        self._add("embedding.weight", (layout.embedding,), None)
        self._add("norm.weight", layout.norm["weight"].names, None)
        if not values["tie_word_embeddings"]:
            self._add("embedding.weight" if model.spec.tie else "head.weight", (layout.head,), None)
        parts = [part for layer in layout.layers for part in layer]
        blocks = range(model.spec.blocks)
        places = [(block, place) for block in blocks for place in range(len(model.spec.learners_of(block)))]
        for (block, place), part in zip(places, parts, strict=True):
            self._add_part(f"blocks.{block}", place, part)

    def _add_part(self, block: str, place: int, part: Part) -> None:
        learner = self._model.get_submodule(f"{block}.learners.{place}")
        self._add(f"{block}.norms.{place}.weight", part.norm["weight"].names, None)
        for name, origin in part.tensors.items():
            self._add(f"{block}.learners.{place}.{name}", origin.names, learner)

    def _add(self, ours: str, theirs: tuple[str, ...], learner: Any) -> None:
        """Maps `theirs` to consecutive rows of our tensor."""
        if len(theirs) == 3:  # queries, keys, values
            sizes = [learner.heads * learner.size, *[learner.groups * learner.size] * 2]
        else:
            total = self._rows(ours, learner)
            sizes = [total // len(theirs)] * len(theirs)
        start = 0
        for name, size in zip(theirs, sizes, strict=True):
            self._sources[name] = (ours, slice(start, start + size))
            start += size

    def _rows(self, ours: str, learner: Any) -> int:
        own = dict(self._model.named_parameters())
        if ours in own:
            return own[ours].shape[0]
        name = ours.rpartition(".learners.")[2].partition(".")[2]
        return (
            learner.size if name.endswith("_norm") else learner.get_submodule(name.removesuffix(".bias")).out_features
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        ours, rows = self._sources[name]
        inner = self._ours.shape(ours)[1:] if ours in self._ours else ()
        return (rows.stop - rows.start, *inner)

    def __getitem__(self, name: str) -> Tensor:
        ours, rows = self._sources[name]
        if ours not in self._ours:  # a norm without weights, or a missing bias
            return (torch.ones if ours.endswith("_norm") else torch.zeros)(rows.stop - rows.start)
        tensor = check_finite(ours, self._ours[ours], self._path).to(torch.float32)
        if ours == "embedding.weight" and self._model.spec.embed_norm and name != self._head:
            tensor = F.rms_norm(tensor, (tensor.shape[1],), eps=self._model.spec.norm_eps)
        return tensor[rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
