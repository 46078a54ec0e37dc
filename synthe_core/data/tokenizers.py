"""Tokens: bytes, or any tokenizer.json. Each knows how many bytes of text a token stands for."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import tokenizers

from synthe_core.data.hub import TIMEOUT, explain, offline, unreachable
from synthe_core.errors import InputError, SyntheError, closest
from synthe_core.registry import Table
from synthe_core.storage.path_format import format_of

END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]", "<|im_end|>")
"""Names under which a tokenizer.json may hold its end of document, the likeliest first."""
MARKS = "synthe"
"""The key under which a tokenizer.json of ours names its begin and end, where they are not what would be guessed."""
TOKENIZER_FORMATS = Table(
    "tokenizer format",
    "synthe.tokenizer_formats",
    {
        "gguf": "synthe_core.interop.source:gguf_tokenizer",
        "huggingface": "synthe_core.interop.source:huggingface_tokenizer",
    },
)
"""What opens the tokenizer of a published model's path, with the begin and end tokens that its configuration states."""
CHAT = "chat_template.jinja"
"""The file beside a tokenizer.json that says how messages become a prompt."""

# The library warns when a process that used its threads forks, unless a variable sets whether it uses threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class Tokenizer(ABC):
    """Text to tokens and back.

    name: for people. digest: differs where tokens differ. vocab_size: ids are below it. end: the id of the end of a
    document. begin: the id that a model of somebody else's expects before a text, None where it expects none. pieces:
    the bytes that each id stands for; special tokens stand for none. stops: further ids at which an answer ends (of a
    turn, for one), while the tokenizer is in memory. chat_template: how messages become a prompt, as a
    Jinja template, None for a model without one; it is stored in CHAT beside tokenizer.json.
    """

    name: str
    digest: str
    vocab_size: int
    end: int
    begin: int | None = None
    pieces: list[bytes]
    chat_template: str | None = None
    stops: frozenset[int] = frozenset()
    reads_bytes = False
    """Whether text that is no valid UTF-8 has tokens too."""

    @property
    def ends(self) -> frozenset[int]:
        """Every id at which an answer ends."""
        return self.stops | {self.end}

    @abstractmethod
    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of `text`, with no special token added; bytes are UTF-8."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """The tokens of each of `texts` as an array of integers."""

    def encode_marked(self, text: str) -> list[int]:
        """The tokens of `text` in which special tokens are written out, as chat templates write them."""
        return self.encode(text)

    @abstractmethod
    def spelling(self, token: int) -> str:
        """What a token, special or not, is called in the vocabulary."""

    def save(self, folder: Path) -> Path:
        """Writes `folder`/tokenizer.json, from which `load_tokenizer` makes this tokenizer again."""
        path = folder / "tokenizer.json"
        path.write_text(self.to_json(), encoding="utf-8")
        if self.chat_template is not None:
            (folder / CHAT).write_text(self.chat_template, encoding="utf-8")
        return path

    @abstractmethod
    def to_json(self) -> str:
        """What tokenizer.json holds."""

    @cached_property
    def widths(self) -> np.ndarray:
        """int64 [vocab_size]: the bytes of text that each id stands for."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; an id outside the vocabulary (a padded row of the embedding) for none."""
        return b"".join(self.pieces[i] for i in ids if 0 <= i < self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.bytes_of(ids).decode("utf-8", "replace")

    def decoder(self) -> Decoder:
        """A decoder for tokens that come one by one."""
        return Decoder(self)


class Decoder:
    """Decodes tokens one by one: bytes of an incomplete character are delayed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: int | Iterable[int]) -> str:
        """The text that is complete with these tokens; "" while a character is unfinished."""
        return self._utf8.decode(self._tokenizer.bytes_of([ids] if isinstance(ids, int) else ids))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        return self._utf8.decode(b"", final=True)


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and 256 for the end of a document."""

    name = "bytes"
    digest = "bytes-1"
    vocab_size = 257
    end = 256
    pieces = [bytes([i]) for i in range(256)] + [b""]
    reads_bytes = True

    def encode(self, text: str | bytes) -> list[int]:
        return list(_bytes(text))

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        return [np.frombuffer(_bytes(text), dtype=np.uint8) for text in texts]

    def spelling(self, token: int) -> str:
        return END if token == self.end else _byte_spelling()[token]

    def to_json(self) -> str:
        return json.dumps({"type": "bytes", "vocab_size": 257, "end": 256}) + "\n"


class FileTokenizer(Tokenizer):
    """A tokenizer.json of the tokenizers library. Its special tokens in a text are encoded as plain text.

    begin, end: tokens to take instead of none and of the likeliest; the file that is written says so under MARKS.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, name: str, *, begin: str | None = None, end: str | None = None
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        marks = {key: token for key, token in (("begin", begin), ("end", end)) if token is not None}
        specials = {token.content: i for i, token in inner.get_added_tokens_decoder().items() if token.special}
        end = end or next((token for token in ENDS if token in specials), None)
        if end is None:
            end = END
            inner.add_special_tokens([END])
        self._json = inner.to_str()
        if marks:
            self._json = json.dumps(json.loads(self._json) | {MARKS: marks}, ensure_ascii=False)
        inner.encode_special_tokens = True
        self._inner = inner
        self.name = name
        self.digest = hashlib.sha256(self._json.encode()).hexdigest()[:16]
        ids = inner.get_vocab(with_added_tokens=True)
        self.begin, self.end = None if begin is None else ids[begin], ids[end]
        self.pieces = _pieces(inner, self._json)
        self.pieces[self.end] = b""
        self.vocab_size = len(self.pieces)

    def encode(self, text: str | bytes) -> list[int]:
        return self._inner.encode(_str(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        encoded = self._inner.encode_batch_fast([_str(text) for text in texts], add_special_tokens=False)
        return [np.array(each.ids, dtype=np.int64) for each in encoded]

    def encode_marked(self, text: str) -> list[int]:
        return self._marked.encode(text, add_special_tokens=False).ids

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        """The same, which takes special tokens in a text for themselves."""
        return tokenizers.Tokenizer.from_str(self._inner.to_str())  # the flag that says otherwise is not saved

    def spelling(self, token: int) -> str:
        return self._inner.id_to_token(token) or ""

    def to_json(self) -> str:
        return self._json


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, the path of a tokenizer.json, of its folder or of a GGUF file, ORG/NAME of the hub, or `hub:NAME`."""
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
    if not looks_local and (name.startswith("hub:") or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        return _from_hub(name.removeprefix("hub:"))
    if near := closest(name, ["bytes", "bpe"]):
        raise InputError(f"unknown tokenizer '{name}'", f"did you mean '{near}'?")
    kind = "no such tokenizer file" if looks_local else "unknown tokenizer"
    raise InputError(f"{kind} '{name}'", "a tokenizer is bytes, bpe, a tokenizer.json, ORG/NAME of the hub or hub:NAME")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of the folder (a checkpoint, for one) that holds it."""
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path.parent} holds no tokenizer.json", "name the file, or a folder that has one")
    chat = path.with_name(CHAT)
    try:
        return read_tokenizer(
            path.read_bytes(), str(path), chat.read_text(encoding="utf-8") if chat.is_file() else None
        )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_tokenizer(content: bytes, name: str, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer of what a tokenizer.json holds; `name` is what it is called."""
    try:
        text = content.decode("utf-8")
        values = json.loads(text)
        if isinstance(values, dict) and values.get("type") == "bytes":
            tokenizer: Tokenizer = ByteTokenizer()
        else:
            marks = values.pop(MARKS, {})
            tokenizer = FileTokenizer(
                tokenizers.Tokenizer.from_str(json.dumps(values) if marks else text), name, **marks
            )
        tokenizer.chat_template = chat_template
        return tokenizer
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{name} is no tokenizer.json: {' '.join(str(error).split())[:200]}") from error


def _from_hub(name: str) -> Tokenizer:
    from huggingface_hub import HfApi, hf_hub_download, utils  # slow to import, and only needed here
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = f"tokenizer '{name}'"
    utils.disable_progress_bars()
    try:
        try:
            path = hf_hub_download(name, "tokenizer.json", local_files_only=True)
        except LocalEntryNotFoundError as error:
            if offline():
                raise unreachable(what) from error
            HfApi().model_info(name, timeout=TIMEOUT)  # answers at once where the download would retry
            path = hf_hub_download(name, "tokenizer.json", etag_timeout=TIMEOUT)
    except SyntheError:
        raise
    except Exception as error:  # the hub's library raises errors of many packages
        raise explain(what, error) from error
    return load_tokenizer(Path(path))


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "replace") if isinstance(text, str) else text


def _str(text: str | bytes) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else text


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters: printable Latin-1 is itself, the rest follows from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(other)}


@cache
def _byte_spelling() -> dict[int, str]:
    """Every byte as a byte-level vocabulary spells it."""
    return {byte: c for c, byte in _byte_alphabet().items()}


def _pieces(inner: tokenizers.Tokenizer, description: str) -> list[bytes]:
    """The bytes of every id: exact for byte-level vocabularies and byte fallback, by spelling for the others."""
    content = json.loads(description)
    parts = json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    byte_level = '"ByteLevel"' in parts
    alphabet = _byte_alphabet()
    added = inner.get_added_tokens_decoder()
    vocab = inner.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        if i in added:
            pieces[i] = b"" if added[i].special else token.encode("utf-8", "replace")
        elif byte_level:
            pieces[i] = bytes(alphabet[c] for c in token if c in alphabet)
        elif fallback := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
            pieces[i] = bytes([int(fallback[1], 16)])
        elif '"WordPiece"' in parts:
            pieces[i] = (token[2:] if token.startswith("##") else " " + token).encode("utf-8", "replace")
        else:
            pieces[i] = token.replace("\u2581", " ").encode("utf-8", "replace")
    return pieces
