"""Writing a checkpoint: beside its place, synced, then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.recipe.schema import Recipe
from synthe_core.storage import adapter_files
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.checkpoint.read import WEIGHTS, Checkpoint
from synthe_core.storage.manifest import MANIFEST, Base, Manifest
from synthe_core.storage.path_format import ARCHITECTURE, MODEL_TYPE
from synthe_core.storage.tensor_file import save_tensors

SHARD_BYTES = 5 * 10**9
INDEX = f"{WEIGHTS}.index.json"


class Contents(TypedDict):
    """What a checkpoint is made of.

    classes: the names of an encoder's classes, in the order of its logits.
    base: writes an adapter of that model, whose factors are the `tensors`.
    training: name -> tensors, written as training/`name`.safetensors; state: JSON for training/state.json.
    """

    recipe: Recipe
    vocab: int
    tensors: Mapping[str, Tensor]
    manifest: Manifest
    tokenizer: NotRequired[Tokenizer | None]
    classes: NotRequired[Sequence[str]]
    base: NotRequired[Checkpoint | None]
    training: NotRequired[Mapping[str, Mapping[str, Tensor]] | None]
    state: NotRequired[Mapping[str, Any] | None]
    shard_bytes: NotRequired[int]


def save(path: Path, *, claimed: bool = False, **contents: Unpack[Contents]) -> Checkpoint:
    """Writes a checkpoint atomically and fills in `manifest.files`.

    claimed: whether the caller has claimed the path. Raises WorkError if the disk is full; an earlier checkpoint at
    `path` is then unchanged.
    """
    with new_folder(path, claimed=claimed) as folder:
        write_files(folder, path, **contents)
    return Checkpoint(path)


def write_files(
    folder: Path,
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
) -> None:
    """Writes the files of a checkpoint, as `save` has them, into a folder that is to be moved to `path`; the manifest
    last, with what the folder has already."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    if base is not None and recipe.train.lora is not None:
        base_path = adapter_files.write(folder, tensors, recipe.train.lora, path, base.path, base.weights_digest)
        reference = Base(path=base_path, sha256=base.weights_digest)
        manifest = manifest.model_copy(update={"kind": "adapter", "base": reference})
    else:
        write_tensors(folder, tensors, shard_bytes)
        config = model_config(recipe, vocab, classes, manifest.context or manifest.published.get("context"))
        (folder / "config.json").write_text(_json(config), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)
    if state is not None:
        _write_training(folder / "training", training or {}, state)
    (folder / MANIFEST).write_text(manifest.with_files(folder).model_dump_json(indent=1) + "\n", encoding="utf-8")


def copy_checkpoint(checkpoint: Checkpoint, path: Path, shard_bytes: int = SHARD_BYTES) -> Checkpoint:
    """Writes a model that is converted while it is read as a checkpoint of its own."""
    return save(
        path,
        recipe=checkpoint.recipe,
        vocab=checkpoint.vocab,
        tensors=checkpoint.tensors,
        manifest=checkpoint.manifest,
        tokenizer=checkpoint.tokenizer() if "tokenizer.json" in checkpoint.manifest.files else None,
        classes=checkpoint.classes,
        shard_bytes=shard_bytes,
    )


def _write_training(folder: Path, training: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(_json(state), encoding="utf-8")
    for name, group in training.items():
        if group:
            save_tensors(_on_cpu(group), folder / f"{name}.safetensors")


def model_config(recipe: Recipe, vocab: int, classes: Sequence[str] = (), context: int | None = None) -> dict[str, Any]:
    """The content of config.json, which transformers reads too (`interop.huggingface.auto_classes`).

    classes: of an encoder. context: the longest text that a published model was trained for.
    """
    if isinstance(recipe.model, PublishedSpec):
        return {**recipe.model.config, "dtype": "float32"}
    if classes:
        kind: dict[str, Any] = {"id2label": {str(index): name for index, name in enumerate(classes)}}
    else:
        longest = context or recipe.data.sequence
        kind = {"architectures": [ARCHITECTURE], "sequence": recipe.data.sequence}
        kind |= {} if context is None else {"context": context}
        if recipe.model.positions is not None or _grows(recipe.meta_model(vocab), longest):
            kind["max_position_embeddings"] = recipe.model.positions or longest
    return kind | {
        "model_type": MODEL_TYPE,
        "vocab_size": vocab,
        "hidden_size": recipe.model.width,
        "num_hidden_layers": recipe.model.blocks,
        "tie_word_embeddings": recipe.model.tie,
        "torch_dtype": "float32",
        "model": recipe.model.model_dump(mode="json"),
    }


def _grows(model: Any, length: int) -> bool:
    """Whether the state of a language model is larger after a text that is longer than `length`."""
    return bool(model.state_bytes(2 * length) > model.state_bytes(length))


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """Writes one file, or shards of at most `shard_bytes` (a larger tensor has its own shard) with an index."""
    shards: list[list[str]] = [[]]
    shard_size = total = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        total += size
        if shards[-1] and shard_size + size > shard_bytes:
            shards.append([])
            shard_size = 0
        shards[-1].append(name)
        shard_size += size
    if len(shards) == 1:
        save_tensors(_on_cpu(tensors), folder / WEIGHTS, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_tensors(_on_cpu({name: tensors[name] for name in names}), folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(_json(index), encoding="utf-8")


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
