"""A byte-level BPE tokenizer trained on the corpus at hand (Sennrich et al. 2016; over bytes, Radford et al. 2019)."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from synthe_core.data.documents import Source, limited
from synthe_core.data.shards import cannot_write
from synthe_core.data.splitting import Plan
from synthe_core.data.tokenizers import END, FileTokenizer, Tokenizer, load_tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress
from synthe_core.hardware.probe import cache_dir

SAMPLE = 20_000_000
"""Bytes of training text that merges are learnt from: more changes few merges and costs minutes."""


def cached(vocab: int, recipe: Any) -> Tokenizer | None:
    """The tokenizer that `train` made before for the same `vocab` and `recipe`, if it did."""
    folder = _folder(vocab, recipe)
    return load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None


def _folder(vocab: int, recipe: Any) -> Path:
    identity = json.dumps([vocab, SAMPLE, tokenizers.__version__, recipe])
    return cache_dir() / "tokenizers" / f"bpe-{vocab}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def train(
    vocab: int, sources: Sequence[tuple[Source, Plan, int | None]], recipe: Any
) -> Generator[Event, None, Tokenizer]:
    """The tokenizer of `vocab` tokens for `sources`: each gives an equal share of the sample, from its start.

    Cached under the digest of `recipe`, which identifies the sources and how they are split. Any text can
    be encoded, since the 256 bytes are in the vocabulary.
    """
    yield Progress(f"learning {vocab} tokens", 0, None, "B")
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    inner.train_from_iterator(_sample(sources), trainer)
    tokenizer = FileTokenizer(inner, f"bpe-{vocab}")
    if tokenizer.vocab_size < vocab:
        yield Notice(
            f"the text holds too few repeats for {vocab} tokens: {tokenizer.vocab_size} were learnt", "warning"
        )
    folder = _folder(vocab, recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            tokenizer.save(Path(temporary)).replace(folder / "tokenizer.json")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return tokenizer


def _sample(sources: Sequence[tuple[Source, Plan, int | None]]) -> Iterator[str]:
    share = SAMPLE // len(sources)
    for source, plan, limit in sources:
        taken = 0
        for piece in limited(source.pieces(), limit):
            for part in plan.parts(piece):
                if part.train:
                    yield decoded(part.text, part.name, part.offset)
                    taken += len(part.text)
            if taken >= share:
                break


def decoded(text: bytes, name: str, offset: int) -> str:
    """`text`, which begins `offset` bytes into the document `name`, as a string; InputError where it is no UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: invalid UTF-8 at byte {offset + error.start}",
            "mend the file, or use the tokenizer 'bytes', which reads anything",
        ) from error
