"""The verb `import`: writes a published model as a checkpoint with the same logits, offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synthe_core.events import Event, Notice, Progress, Result, Saved
from synthe_core.interop.converted import ConvertedModel, PublishedModel
from synthe_core.interop.gguf.model import GgufModel
from synthe_core.interop.hub import local_path
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.saved_model import converted
from synthe_core.storage.checkpoint import save
from synthe_core.storage.run_folder import new_run

SHARD_BYTES = 10**9  # about twice this is in memory at a time


def import_hf(source: Path, *, out: Path | None = None, name: str | None = None) -> Iterator[Event]:
    """Writes the model of folder `source`, or of an id of the hub, as a checkpoint and yields events; the last is a
    Result with its path.

    out:  the checkpoint's folder; by default runs/NAME, or the first free runs/NAME-N.
    name: the name in its recipe; by default that of the source folder.

    Reads config.json, safetensors and tokenizer.json, but no pickles. Weights become float32, which represents every
    value of the narrower types. InputError names the key or tensor that cannot be expressed.

    Logits differ by rounding only. Thousands of tokens into a text most of it is transformers' own: its rotary angles
    are float32, and ours are float64 before the cosine.
    """
    return _import(HuggingFaceModel(local_path(source)), out, name)


def import_gguf(source: Path, *, out: Path | None = None, name: str | None = None) -> Iterator[Event]:
    """Writes the model of the GGUF file `source` as a checkpoint, its quantised weights dequantised to float32. Options
    and events are those of `import_hf`."""
    return _import(GgufModel(local_path(source)), out, name)


def _import(published: PublishedModel, out: Path | None, name: str | None) -> Iterator[Event]:
    model = converted(published, name)
    with new_run(model.name, out) as path:
        yield from _write(model, path)


def _write(model: ConvertedModel, path: Path) -> Iterator[Event]:
    """Writes the checkpoint at `path`, which is claimed."""
    tokenizer = model.tokenizer
    yield from model.notices
    recipe = model.recipe(None if tokenizer is None else path / "tokenizer.json")
    tensors, manifest = model.tensors, model.manifest()
    size = f"{manifest.parameters:,} parameters in {recipe.model.blocks} blocks"
    yield Notice(f"{model.architecture}: {size}, {tensors.dtypes}")
    yield Progress("import", 0, tensors.nbytes, "bytes")
    save(
        path,
        recipe=recipe,
        vocab=model.vocab,
        tensors=tensors,
        manifest=manifest,
        tokenizer=tokenizer,
        shard_bytes=SHARD_BYTES,
        claimed=True,
    )
    yield Progress("import", tensors.nbytes, tensors.nbytes, "bytes")
    yield Saved(path, 0)
    facts = {"architecture": model.architecture, "parameters": manifest.parameters, "vocabulary": model.vocab}
    yield Result(facts, path)
