"""Tokens: bytes, or any tokenizer.json. Each knows how many bytes of text a token stands for."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from synthe_core.data.byte_level import END, byte_spelling, bytes_model, is_bytes_model
from synthe_core.data.hub import tokenizer_file
from synthe_core.data.longest_match import is_longest_match, read_longest_match
from synthe_core.data.token_pieces import token_pieces
from synthe_core.data.tokenizer import Tokenizer as Tokenizer
from synthe_core.data.tokenizer import as_bytes, as_json, as_str
from synthe_core.data.tokenizer_config import (
    BESIDE,
    MARKS,
    TokenizerConfig,
    likeliest_end,
    prefix,
)
from synthe_core.data.tokenizer_limits import parse_limited, read_limited
from synthe_core.errors import InputError, closest
from synthe_core.registry import Table
from synthe_core.storage.hub.model_id import PREFIX, HubId
from synthe_core.storage.path_format import format_of

FILES = ("tokenizer.json", *BESIDE)
"""The files of a tokenizer, in the format of the libraries tokenizers and transformers."""
TOKENIZER_FORMATS = Table(
    "tokenizer format",
    "synthe.tokenizer_formats",
    {
        "gguf": "synthe_core.interop.source:gguf_tokenizer",
        "hub": "synthe_core.interop.hub:tokenizer",
        "huggingface": "synthe_core.interop.source:huggingface_tokenizer",
    },
)
"""What opens the tokenizer of a published model's path, with the begin and end tokens that its configuration states."""

# The library warns when a process that used its threads forks, unless a variable sets whether it uses threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and 256 for the end of a document."""

    name = "bytes"
    digest = "bytes-1"
    vocab_size = 257
    end = 256
    pieces = [bytes([i]) for i in range(256)] + [b""]
    reads_bytes = True

    def encode(self, text: str | bytes) -> list[int]:
        return list(as_bytes(text))

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        return [np.frombuffer(as_bytes(text), dtype=np.uint8) for text in texts]

    def spelling(self, token: int) -> str:
        return END if token == self.end else byte_spelling()[token]

    def to_json(self) -> str:
        return as_json(bytes_model())


class FileTokenizer(Tokenizer):
    """A tokenizer.json of the tokenizers library. Its special tokens in a text are encoded as plain text.

    begin, end: tokens to take instead of none and of the likeliest. The digest depends on them.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, name: str, *, begin: str | None = None, end: str | None = None
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        added = inner.get_added_tokens_decoder()
        likeliest = likeliest_end(added.values())
        end = likeliest if end is None else end
        marks = {} if begin is None else {"begin": begin}
        marks |= {} if end is None or end == likeliest else {"end": end}
        if end is None:
            end = END
            inner.add_special_tokens([END])
            added = inner.get_added_tokens_decoder()
        if begin is not None and ":" not in begin and prefix(inner) != begin:  # so that other libraries add it too
            special = [(begin, inner.token_to_id(begin))]
            inner.post_processor = processors.TemplateProcessing([begin, "$A"], special_tokens=special)
        self._json = identity = inner.to_str()
        if marks:
            identity = json.dumps(json.loads(identity) | {MARKS: marks}, ensure_ascii=False)
        inner.encode_special_tokens = True
        self._inner = inner
        self.name = name
        self.digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        ids, self._added = inner.get_vocab(with_added_tokens=True), added
        self.begin, self.end = None if begin is None else ids[begin], ids[end]
        self.pieces = token_pieces(ids, added, self._json)
        self.pieces[self.end] = b""
        self.vocab_size = len(self.pieces)

    def encode(self, text: str | bytes) -> list[int]:
        return self._inner.encode(as_str(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        encoded = self._inner.encode_batch_fast([as_str(text) for text in texts], add_special_tokens=False)
        return [np.array(each.ids, dtype=np.int64) for each in encoded]

    def encode_marked(self, text: str) -> list[int]:
        return self._marked.encode(as_str(text), add_special_tokens=False).ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._marked.encode(as_str(text), add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def encode_batch_with_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        encoded = self._marked.encode_batch([as_str(text) for text in texts], add_special_tokens=False)
        return [(each.ids, each.offsets) for each in encoded]

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        """The same, which takes special tokens in a text for themselves."""
        return tokenizers.Tokenizer.from_str(self._inner.to_str())  # the flag that says otherwise is not saved

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self._added.items() if token.special) | {self.end}

    @cached_property
    def adds_space(self) -> bool:  # type: ignore[override]
        return self.bytes_of(self.encode("a")).startswith(b" ")

    def decode(self, ids: Iterable[int]) -> str:
        """As the library decodes a whole text, which may join pieces in its own way."""
        return self._inner.decode([i for i in ids if i != self.end], skip_special_tokens=True)

    def decode_marked(self, ids: Iterable[int]) -> str:
        """An added token ends a section, and a space may be added before each section."""
        added, mark = self._added, self.spelling(self.end)
        each = self.adds_space and self.bytes_of(self.encode_marked(mark + "a")[1:]).startswith(b" ")
        parts, section, strips = [], b"", self.adds_space
        for i in [*(i for i in ids if 0 <= i < self.vocab_size), None]:
            if i is not None and i not in added:
                section += self.pieces[i]
                continue
            parts.append(section.removeprefix(b" ") if strips else section)
            parts.append(b"" if i is None else added[i].content.encode("utf-8", "replace"))
            section, strips = b"", each
        return b"".join(parts).decode("utf-8", "replace")

    def spelling(self, token: int) -> str:
        return self._inner.id_to_token(token) or ""

    def to_json(self) -> str:
        return self._json


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, the path of a tokenizer.json, of its folder or of a GGUF file, ORG/NAME of the hub, or `hub:NAME`.

    ORG/NAME is the tokenizer.json alone. `hub:ORG/NAME@REVISION` and `hub:ORG/NAME/FILE` are the tokenizer of the
    model, with its special tokens.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file():
        kind = format_of(path)
        if kind is not None and kind in TOKENIZER_FORMATS:
            tokenizer: Tokenizer = TOKENIZER_FORMATS[kind](path)
            return tokenizer
        return load_tokenizer(path)
    looks_local = name.endswith(".json") or name.startswith((".", "/", "~"))
    if name.startswith(PREFIX) and (model := HubId.parse(name)) and (model.revision or model.file):
        pinned: Tokenizer = TOKENIZER_FORMATS["hub"](Path(name))
        return pinned
    if not looks_local and (name.startswith("hub:") or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        path = tokenizer_file(name.removeprefix("hub:"))
        return read_tokenizer(path.read_bytes(), str(path))  # alone: what lies beside it depends on earlier downloads
    if near := closest(name, ["bytes", "bpe"]):
        raise InputError(f"unknown tokenizer '{name}'", f"did you mean '{near}'?")
    kind = "no such tokenizer file" if looks_local else "unknown tokenizer"
    raise InputError(f"{kind} '{name}'", "a tokenizer is bytes, bpe, a tokenizer.json, ORG/NAME of the hub or hub:NAME")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json and the files BESIDE it, or of the folder (a checkpoint, for one) that holds
    them."""
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path.parent} holds no tokenizer.json", "name the file, or a folder that has one")
    beside = [path.with_name(name) for name in BESIDE]
    try:
        return read_tokenizer(
            read_limited(path), str(path), {each.name: each.read_bytes() for each in beside if each.is_file()}
        )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_tokenizer(
    content: bytes, name: str, beside: Mapping[str, bytes] | None = None, ends: Sequence[Any] = ()
) -> Tokenizer:
    """The tokenizer of what a tokenizer.json holds; `name` is what it is called.

    beside: the contents of those of the files BESIDE that exist. ends: `eos_token_id` of other files, or names of
    tokens that end an answer.
    """
    try:
        config = TokenizerConfig.parse(beside or {})
    except ValueError as error:
        raise InputError(f"beside {name}, {' '.join(str(error).split())[:200]}", "copy it again") from None
    try:
        text, values = parse_limited(content)
        if is_bytes_model(values):
            tokenizer = ByteTokenizer()
            ids = {tokenizer.spelling(i): i for i in range(tokenizer.vocab_size)}
            names = config.ends(ids.get, lambda i: tokenizer.spelling(i) if i < len(ids) else None, ends)
            return _described(tokenizer, config, [ids[each] for each in names])
        if is_longest_match(values):
            return _longest_match(values, name, config, ends)
        marks = values.pop(MARKS, {})
        inner = tokenizers.Tokenizer.from_str(json.dumps(values) if marks else text)
        names = config.ends(inner.token_to_id, inner.id_to_token, ends)
        begin = config.begin(inner.token_to_id, lambda: prefix(inner))
        marks = {"begin": begin, "end": names[0] if names else None} | marks
        known = [i for each in names if (i := inner.token_to_id(each)) is not None]
        return _described(FileTokenizer(inner, name, **marks), config, known)
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{name} is no tokenizer.json: {' '.join(str(error).split())[:200]}") from error


def _longest_match(values: dict[str, Any], name: str, config: TokenizerConfig, ends: Sequence[Any]) -> Tokenizer:
    tokenizer = read_longest_match(values, name)
    ids = tokenizer.names
    begin = config.begin(ids.get, lambda: None)
    tokenizer.begin = None if begin is None else ids[begin]
    named = config.ends(ids.get, tokenizer.spelling, ends)
    return _described(tokenizer, config, [ids[each] for each in named if each in ids])


def _described(tokenizer: Tokenizer, config: TokenizerConfig, ends: Sequence[int]) -> Tokenizer:
    """The tokenizer with what the files beside it say."""
    tokenizer.chat_template, tokenizer.special_tokens = config.chat_template, config.special_tokens
    tokenizer.stops, tokenizer.sampling = frozenset(ends) - {tokenizer.end}, config.sampling
    return tokenizer
