"""The material of a document on disk: made once for a model, a document and the settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from synthe_core.data.document_text import DocumentText, Passage, passages, read_document
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice
from synthe_core.hardware.probe import cache_dir
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.load import load_checkpoint
from synthe_core.storage.atomic import write_file
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.documents.material import MAX_TOKENS, Item, MaterialSettings, write_material
from synthe_core.training.documents.prompts import passage_text
from synthe_core.training.documents.stages import Stages

FORMAT = 1
"""Changes with the prompts and the rules of filtering, so that material of earlier ones is not used."""


class PassageSettings(NamedTuple):
    """The most tokens of a passage, and those that it may share with the one before."""

    tokens: int = 256
    overlap: int = 32


def document_material(
    document: Path, base: Checkpoint, device: str, cut: PassageSettings, settings: MaterialSettings
) -> Generator[Event, None, Path]:
    """The file of the material that the model at `base` writes about a document; written now if it is not in the cache.

    Each line is a conversation of a question and its answer, and has the passage that the answer is from:
    {"messages": [...], "document": "...", "passage": 0, "kind": "question"}.
    InputError for a document without text, and where the model writes nothing useful.
    """
    text = read_document(document)
    path = material_path(text, base, cut, settings)
    if path.is_file():
        yield Notice(f"{document}: questions and continuations from the cache ({path})")
        return path
    model = load_checkpoint(base, "model", device, batch_invariant=False)
    tokenizer = model.tokenizer
    pieces = passages(text.text, lambda each: len(tokenizer.encode(each)), _fitting(model, cut.tokens), cut.overlap)
    yield Notice(f"{document}: {len(pieces)} passages, about which the model writes questions and continuations")
    stages = Stages(path.with_suffix(".stages.json"))
    items = yield from write_material(model, text.title, pieces, settings, stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "".join(_line(item, pieces, text.title) for item in items))
    stages.remove()
    return path


def material_path(text: DocumentText, base: Checkpoint, cut: PassageSettings, settings: MaterialSettings) -> Path:
    """Where the material is stored, by all that it depends on."""
    facts = [FORMAT, base.digest, text.digest, text.title, cut, settings]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return cache_dir() / "documents" / f"{digest}.jsonl"


def _fitting(model: LoadedModel, tokens: int) -> int:
    """The most tokens of a passage with which the model can read a question and write an answer."""
    limit = model.max_length
    if limit is None or tokens <= limit // 2:
        return tokens
    if limit < 4 * MAX_TOKENS:
        raise InputError(f"the model reads {limit} tokens, which are too few for a passage and a question about it")
    return limit // 2


def _line(item: Item, pieces: Sequence[Passage], title: str) -> str:
    row = {
        "messages": [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}],
        "document": passage_text(pieces[item.passage], title),
        "passage": item.passage,
        "kind": item.kind,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"
