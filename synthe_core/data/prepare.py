"""From a recipe's `data` to tokens ready for training, and what is in them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthe_core.data import bpe
from synthe_core.data.corpora import open_source
from synthe_core.data.documents import Source
from synthe_core.data.files import Files
from synthe_core.data.packing import Corpus, pack
from synthe_core.data.shards import Index, Split, document_digests
from synthe_core.data.spec import DataSpec
from synthe_core.data.splitting import Plan, survey
from synthe_core.data.tokenizers import Tokenizer, open_tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress, Result


@dataclass(frozen=True)
class PackedSource:
    """A source in tokens: its share of the training sequences and its two splits."""

    name: str
    weight: float
    train: Split
    validation: Split
    folder: Path


@dataclass(frozen=True)
class Packed:
    """All of a recipe's data in tokens. `validation` runs through the sources' validation texts one after another."""

    spec: DataSpec
    tokenizer: Tokenizer
    sources: tuple[PackedSource, ...]
    validation: Split

    @property
    def train(self) -> tuple[PackedSource, ...]:
        """The sources that training sequences are drawn from."""
        return tuple(source for source in self.sources if source.weight > 0)

    def stats(self) -> dict[str, object]:
        """Documents, bytes and tokens of every source and side, and of all."""
        table = [
            {"source": source.name, "split": side, **_figures(split)}
            for source in self.sources
            for side, split in (("train", source.train), ("validation", source.validation))
            if split.tokens
        ]
        splits = [split for source in self.sources for split in (source.train, source.validation)]
        return {
            "tokenizer": self.tokenizer.name,
            "vocabulary": self.tokenizer.vocab_size,
            **_figures(*splits),
            "sources": table,
        }


def _figures(*splits: Split) -> dict[str, float]:
    size, tokens = sum(split.bytes for split in splits), sum(split.tokens for split in splits)
    return {
        "documents": sum(split.documents for split in splits),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": round(size / tokens, 4),
    }


def open_data(spec: DataSpec) -> Generator[Event, None, Packed]:
    """Packs what is not packed yet and returns it: `packed = yield from open_data(spec)`.

    Raises InputError for a source that is missing, empty, unreadable or shorter than one sequence, WorkError if
    the hub cannot be reached or the disk cannot be written.
    """
    if spec.stream:
        raise InputError(
            "data.stream is set: the text is read while training, and is not prepared before",
            "leave out data.stream to prepare it all: --set data.stream=false",
        )
    weighted = corpora(spec)
    for _, corpus in weighted:
        for note in corpus.source.notes:
            yield Notice(f"{corpus.source.name}: {note}", "warning")
    tokenizer = yield from tokenizer_of(spec, [corpus for weight, corpus in weighted if weight > 0])
    places = []
    for _, corpus in weighted:
        folder, index = yield from pack(corpus, tokenizer)
        places.append((folder, index))
    held_out = [document_digests(folder, index, "validation") for folder, index in places] if len(places) > 1 else []
    sources = []
    for number, (weight, corpus) in enumerate(weighted):
        folder, index = places[number]
        train = Split([(folder, index, "train")], tokenizer.widths, _of_others(number, places, held_out))
        validation = Split([(folder, index, "validation")], tokenizer.widths)
        if train.left_out:
            yield Notice(_left_out(corpus.source.name, train))
        if weight > 0 and train.tokens <= spec.sequence:
            raise _too_short(corpus.source.name, train, spec)
        if corpus.fraction > 0 and validation.tokens < 2:
            yield Notice(
                f"{corpus.source.name}: no document is in the validation split; raise data.validation", "warning"
            )
        sources.append(PackedSource(corpus.source.name, weight, train, validation, folder))
    validations = [(folder, index, "validation") for folder, index in places]
    return Packed(spec, tokenizer, tuple(sources), Split(validations, tokenizer.widths))


def _of_others(number: int, places: Sequence[tuple[Path, Index]], held_out: Sequence[np.ndarray]) -> np.ndarray | None:
    """The digests of the documents that are validation text of other sources than source `number`.

    Where both cut their documents by position, those are none: the same tail of a document is validation text in both.
    """
    cut = [index.plan["cuts"] is not None for _, index in places]
    others = [d for other, d in enumerate(held_out) if other != number and not (cut[number] and cut[other])]
    return np.unique(np.concatenate(others)) if others else None


def _left_out(name: str, train: Split) -> str:
    what = "1 document is" if train.left_out == 1 else f"{train.left_out:,} documents are"
    return f"{name}: {what} also in the validation text, and left out of training"


def _too_short(name: str, train: Split, spec: DataSpec) -> InputError:
    if train.left_out and not train.tokens and isinstance(spec.validation, str):
        return _both(name, spec.validation)
    rest = f" besides the {train.left_out:,} documents of the validation text" if train.left_out else ""
    return InputError(
        f"'{name}' is shorter than one sequence: it has {train.tokens} training tokens{rest}, and a sequence of "
        f"{spec.sequence} takes {spec.sequence + 1}",
        "give more text, or a shorter data.sequence",
    )


def _both(name: str, validation: str) -> InputError:
    other = "" if name == validation else f" ('{validation}')"
    return InputError(
        f"'{name}' is both a source of training text and all of the validation text{other}",
        "name another source for one of them, or a fraction such as validation: 0.05",
    )


def corpora(spec: DataSpec) -> list[tuple[float, Corpus]]:
    """Every source of a recipe's data and its weight, 0 for one that is all validation text."""
    fraction = spec.validation if isinstance(spec.validation, float | int) else 0.0
    weighted = [
        (
            each.weight,
            Corpus(
                open_source(each.source, each.field or spec.field, spec.labels),
                each.limit or spec.limit,
                fraction,
                spec.labels,
            ),
        )
        for each in spec.sources
    ]
    if isinstance(spec.validation, str):
        held_out = open_source(spec.validation, spec.field, spec.labels)
        for each, (_, corpus) in zip(spec.sources, weighted, strict=True):
            same = each.source == spec.validation and each.field in (None, spec.field)
            if same or _within(corpus.source, held_out):
                raise _both(each.source, spec.validation)
        weighted.append((0.0, Corpus(held_out, spec.limit, 1.0, spec.labels)))
    return weighted


def _within(source: Source, other: Source) -> bool:
    """Whether every file of a source is one of the other, whatever their paths, and the same field of it is read."""
    if not isinstance(source, Files) or not isinstance(other, Files) or source.field != other.field:
        return False
    return not {_file(path) for path in source.paths} - {_file(path) for path in other.paths}


def _file(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def tokenizer_of(spec: DataSpec, training: list[Corpus]) -> Generator[Event, None, Tokenizer]:
    """The tokenizer that a recipe names; `bpe` is trained on the `training` text, unless it is cached."""
    vocab = spec.tokenizer.vocab
    if spec.tokenizer.type != "bpe" or vocab is None:
        tokenizer = open_tokenizer(spec.tokenizer.type)
        if vocab not in (None, tokenizer.vocab_size):
            raise InputError(
                f"the tokenizer '{spec.tokenizer.type}' has {tokenizer.vocab_size} tokens, and the recipe says {vocab}",
                f"set data.tokenizer.vocab to {tokenizer.vocab_size}, or leave it out",
            )
        return tokenizer
    identity: list[object] = [corpus.identity() for corpus in training]
    if spec.stream:
        identity.append("stream")  # another split
    if (cached := bpe.cached(vocab, identity)) is not None:
        return cached
    planned = []
    for corpus in training:
        plan = (
            Plan(corpus.fraction) if spec.stream else (yield from survey(corpus.source, corpus.fraction, corpus.limit))
        )
        planned.append((corpus.source, plan, corpus.limit))
    return (yield from bpe.train(vocab, planned, identity))


def open_tokenizer_of(spec: DataSpec) -> Generator[Event, None, Tokenizer]:
    """The tokenizer of data that are not text of their own. InputError for `bpe`, which is trained on text."""
    if spec.tokenizer.type == "bpe":
        raise InputError(
            "data.tokenizer: bpe is trained on text, and these are conversations",
            "name a tokenizer, or begin with a model: --init CHECKPOINT",
        )
    return (yield from tokenizer_of(spec, []))


def load(spec: DataSpec) -> Packed:
    """`open_data` without its events."""
    work = open_data(spec)
    while True:
        try:
            next(work)
        except StopIteration as end:
            packed: Packed = end.value
            return packed


def prepare(spec: DataSpec) -> Iterator[Event]:
    """The verb behind `synthe data prepare`: packs the data and ends in a Result of its counts."""
    packed = yield from open_data(spec)
    yield Result(packed.stats(), packed.sources[0].folder.parent)


def stats(spec: DataSpec) -> Iterator[Event]:
    """The verb behind `synthe data stats`: the counts, and how the training tokens are spread.

    `tokens_used` is how many different tokens occur; `unigram_bits_per_byte` is the bits per byte of a model that
    knows only how often each token occurs, -(1/bytes) sum_t log2 p(t): what any training must get below.
    """
    packed = yield from open_data(spec)
    counts = np.zeros(packed.tokenizer.vocab_size, dtype=np.int64)
    total = sum(source.train.tokens for source in packed.train)
    done = 0
    for source in packed.train:
        for start in range(0, source.train.tokens, 2**20):
            ids = source.train.read(start, min(2**20, source.train.tokens - start))
            counts += np.bincount(ids, minlength=len(counts))
            done += len(ids)
            yield Progress("counting tokens", done, total, "tokens")
    share = counts[counts > 0] / total
    entropy = -float((share * np.log2(share)).sum())
    size = sum(source.train.bytes for source in packed.train)
    spread = {"tokens_used": len(share), "unigram_bits_per_byte": round(entropy * total / size, 4)}
    yield Result({**packed.stats(), **spread}, packed.sources[0].folder.parent)
