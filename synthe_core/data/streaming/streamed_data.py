"""From a recipe's `data` to a stream of it and its validation text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass
from threading import Event as Stop

import numpy as np

from synthe_core.data.prepare import corpora, tokenizer_of
from synthe_core.data.shards import Split, document_digests
from synthe_core.data.spec import DataSpec
from synthe_core.data.streaming import stream_shard
from synthe_core.data.streaming.held_out import pack_held_out
from synthe_core.data.streaming.shard_supply import ShardSupply
from synthe_core.data.streaming.stream_shard import ShardFolder
from synthe_core.data.streaming.streamed_batches import StreamedBatches
from synthe_core.data.streaming.token_reader import StreamedText
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.events import Event, Notice
from synthe_core.hardware.probe import cache_dir

FORMAT = 1


@dataclass(frozen=True)
class Streamed:
    """Streamed training text. weights: of the sources. validation: the text that is held out, packed."""

    spec: DataSpec
    tokenizer: Tokenizer
    sources: tuple[StreamedText, ...]
    weights: tuple[float, ...]
    validation: Split

    def batches(self, seed: int, stop: Stop | None = None) -> StreamedBatches:
        """The training sequences, whose order depends on `seed`. Once `stop` is set, no text is waited for."""
        stop, length = stop or Stop(), self.spec.sequence
        supplies = [ShardSupply(text, self._folder(text), length, stop) for text in self.sources]
        return StreamedBatches(supplies, self.weights, self.spec.sequence, seed)

    def digests(self) -> list[str]:
        """What says which text each source is, whatever its files are called: how it is read, and what is held out."""
        return [_digest(text.corpus.limit, text.corpus.fraction, sorted(text.held_out)) for text in self.sources]

    def _folder(self, text: StreamedText) -> ShardFolder:
        sizes = [FORMAT, self.spec.sequence, stream_shard.SHARD]
        name = _digest(text.corpus.identity(), text.tokenizer.digest, sorted(text.held_out), *sizes)
        return ShardFolder(cache_dir() / "streams" / name[:16], text.tokenizer.vocab_size)


def open_stream(spec: DataSpec) -> Generator[Event, None, Streamed]:
    """Packs the validation text if it is not in the cache. Training text is read when it is needed.

    Raises InputError for a source that is missing or unreadable, WorkError if the hub cannot be reached or the disk
    cannot be written.
    """
    weighted = corpora(spec)
    for _, corpus in weighted:
        for note in corpus.source.notes:
            yield Notice(f"{corpus.source.name}: {note}", "warning")
    training = [(weight, corpus) for weight, corpus in weighted if weight > 0]
    tokenizer = yield from tokenizer_of(spec, [corpus for _, corpus in training])
    places = yield from pack_held_out([corpus for _, corpus in weighted], tokenizer)
    digests = [document_digests(folder, index, "validation") for folder, index in places]
    held_out = frozenset(np.concatenate(digests).tolist()) if digests else frozenset()
    sources = tuple(StreamedText(corpus, tokenizer, held_out) for _, corpus in training)
    validation = Split([(folder, index, "validation") for folder, index in places], tokenizer.widths)
    return Streamed(spec, tokenizer, sources, tuple(weight for weight, _ in training), validation)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
