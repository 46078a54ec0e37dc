"""The verb `import hf`: converts a Hugging Face model folder to a checkpoint with the same logits, offline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress, Result, Saved
from synthe_core.hardware.probe import probe
from synthe_core.interop.huggingface.import_tokenizer import tokenizer_of
from synthe_core.interop.huggingface.published import BYTES, Published
from synthe_core.interop.huggingface.weight_maps import Plan, plan, tied_by_default
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import save, weights
from synthe_core.storage.manifest import Manifest, describe_hardware, package_versions
from synthe_core.storage.run_folder import new_run
from synthe_core.storage.yaml_reader import YamlSource

SHARD_BYTES = 10**9  # about twice this is in memory at a time
IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")  # older versions saved this buffer, which follows from config.json
FINE_TUNING = {"optimizer": "adamw", "lr": 2e-5}  # the learning rates of pretraining would destroy trained weights


def import_hf(source: Path, *, out: Path | None = None, name: str | None = None) -> Iterator[Event]:
    """Writes the model of folder `source` as a checkpoint and yields events; the last is a Result with its path.

    out:  the checkpoint's folder; by default runs/NAME, or the first free runs/NAME-N.
    name: the name in its recipe; by default that of the source folder.

    Reads config.json, safetensors and tokenizer.json, but no pickles. Weights become float32, which represents every
    value of the narrower types. InputError names the key or tensor that cannot be expressed.

    Logits differ by rounding only. Thousands of tokens into a text most of it is transformers' own: its rotary angles
    are float32, and ours are float64 before the cosine.
    """
    published = Published(source)
    layout = plan(published.config)
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().name).lstrip("._-") or "imported"
    path = new_run(name, out)
    vocab, tie = published.config.size("vocab_size"), _is_tied(published, layout)
    tokenizer = yield from tokenizer_of(published, vocab)
    architecture = published.config.values["architectures"][0]
    values = {
        "name": name,
        "description": f"{architecture}, imported from {source}",
        "model": layout.model(published.config.size("hidden_size"), tie),
        "data": {} if tokenizer is None else {"tokenizer": str(path / "tokenizer.json")},
        "train": FINE_TUNING,
    }
    recipe = Recipe.from_source(YamlSource(str(source), values, {}))
    model = recipe.meta_model(vocab)
    tensors = _converted(published, layout, tie, weights(model), architecture)
    parameters = model.parameter_count()
    yield Notice(f"{architecture}: {parameters:,} parameters in {recipe.model.blocks} blocks, {tensors.dtypes}")
    yield Progress("import", 0, tensors.nbytes, "bytes")
    manifest = _manifest(published, source, architecture, tensors.dtypes, parameters)
    save(
        path,
        recipe=recipe,
        vocab=vocab,
        tensors=tensors,
        manifest=manifest,
        tokenizer=tokenizer,
        shard_bytes=SHARD_BYTES,
    )
    yield Progress("import", tensors.nbytes, tensors.nbytes, "bytes")
    yield Saved(path, 0)
    yield Result({"architecture": architecture, "parameters": parameters, "vocabulary": vocab}, path)


def _converted(
    published: Published, layout: Plan, tie: bool, own: Mapping[str, Tensor], architecture: str
) -> ConvertedTensors:
    """Our tensors. InputError if the folder has a tensor that none of ours is made of."""
    tensors = ConvertedTensors(published, layout.sources(tie), own)
    unused = tensors.unused() - ({layout.head} if tie else set())
    if unused:
        raise InputError(
            f"{published.path} has a tensor {min(unused)}, which {architecture} has not by its config.json",
            "it is another architecture, or one with additions that synthe does not know",
        )
    return tensors


def _manifest(published: Published, source: Path, architecture: str, dtypes: str, parameters: int) -> Manifest:
    origin: dict[str, Any] = {"format": "huggingface", "architecture": architecture, "stored": dtypes}
    if isinstance(context := published.config.get("max_position_embeddings"), int):
        origin["context"] = context  # the longest text that it was trained for
    return Manifest.model_validate(
        {
            "parameters": parameters,
            "parents": [str(source)],
            "source": origin,
            "versions": package_versions(),
            "hardware": describe_hardware(probe()),
        }
    )


class ConvertedTensors(Mapping[str, Tensor]):
    """Our tensors, each made of published ones when it is read. InputError if one is missing or has another shape."""

    def __init__(self, published: Published, sources: dict[str, tuple[str, ...]], own: Mapping[str, Tensor]) -> None:
        self._published, self._sources = published, sources
        assert sources.keys() == own.keys(), sources.keys() ^ own.keys()
        kinds: set[str] = set()
        for name, theirs in sources.items():
            for tensor in theirs:
                if tensor not in published:
                    raise InputError(
                        f"{published.path} has no tensor {tensor}, which its config.json asks for",
                        "fetch every file of the model",
                    )
                kinds.add(published.stored_as(tensor))
            self._check(theirs, list(own[name].shape))
        self.dtypes = "/".join(sorted(kinds, key=lambda kind: (-BYTES[kind], kind)))
        self.nbytes = sum(tensor.numel() * torch.float32.itemsize for tensor in own.values())

    def _check(self, theirs: tuple[str, ...], expected: list[int]) -> None:
        shapes = [self._published.shape(tensor) for tensor in theirs]
        rows = sum(shape[0] if shape else 0 for shape in shapes)
        if any(shape[1:] != expected[1:] for shape in shapes) or rows != expected[0]:
            actual = ", ".join(f"{tensor} {shape}" for tensor, shape in zip(theirs, shapes, strict=True))
            together = " together" if len(theirs) > 1 else ""
            raise InputError(
                f"{self._published.path} has {actual}, and by its config.json that should be {expected}{together}",
                "config.json and the weights are of two models",
            )

    def unused(self) -> set[str]:
        """The published tensors that no tensor of ours is made of."""
        used = {tensor for theirs in self._sources.values() for tensor in theirs}
        return {tensor for tensor in self._published if tensor not in used and not IGNORED.search(tensor)}

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._published[tensor].to(torch.float32) for tensor in self._sources[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def _is_tied(published: Published, layout: Plan) -> bool:
    """Whether embedding and head share a matrix: as config.json says, unless the folder has two that differ."""
    if not tied_by_default(published.config):
        return False
    if layout.head not in published or layout.embedding not in published:
        return True
    one, other = published[layout.head], published[layout.embedding]
    return one.shape == other.shape and bool(torch.equal(one, other))
