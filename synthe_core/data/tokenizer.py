"""What every tokenizer does."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from synthe_core.data.decoder import Decoder
from synthe_core.data.tokenizer_config import CHAT, CONFIG, GENERATION


class Tokenizer(ABC):
    """Text to tokens and back.

    name: for people. digest: differs where tokens differ. vocab_size: ids are below it. end: the id of the end of a
    document. begin: the id that a model of somebody else's expects before a text, None where it expects none. pieces:
    the bytes that each id stands for; special tokens stand for none. stops: further ids at which an answer ends (of a
    turn, for one). chat_template: how messages become a prompt, as a Jinja template, None for a model without one.
    special_tokens: their texts by name, as the chat template knows them. sampling: defaults of generation_config.json.
    """

    name: str
    digest: str
    vocab_size: int
    end: int
    begin: int | None = None
    pieces: list[bytes]
    chat_template: str | None = None
    stops: frozenset[int] = frozenset()
    special_tokens: Mapping[str, str] = {}
    sampling: Mapping[str, Any] = {}
    reads_bytes = False
    """Whether text that is no valid UTF-8 has tokens too."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that stand for no text."""
        return frozenset({self.end})

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

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of `encode_marked`, and where the characters of each begin and end in `text`."""
        ids = [self.encode(character) for character in text]
        return [i for each in ids for i in each], [(at, at + 1) for at, each in enumerate(ids) for _ in each]

    def encode_batch_with_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_with_places` of each of `texts`."""
        return [self.encode_with_places(text) for text in texts]

    def encode_after(self, before: str, text: str) -> list[int]:
        """The tokens of `text`, special ones written out, where it follows the text `before`: no space is put in front
        of it as in front of a whole text, and a special token before it may take its white space."""
        head = self.encode_marked(before)
        whole = self.encode_marked(before + text)
        return whole[len(head) :] if whole[: len(head)] == head else self.encode_marked(text)

    @abstractmethod
    def spelling(self, token: int) -> str:
        """What a token, special or not, is called in the vocabulary."""

    def save(self, folder: Path) -> Path:
        """Writes `folder`/tokenizer.json and what belongs beside it, from which `load_tokenizer` makes this tokenizer
        again. The libraries tokenizers and transformers read them too, and give the same ids; only the name of a
        special token in a text is that token for them, and text here."""
        path = folder / "tokenizer.json"
        path.write_text(self.to_json(), encoding="utf-8")
        (folder / CONFIG).write_text(as_json(self.options), encoding="utf-8")
        if self.chat_template is not None:
            (folder / CHAT).write_text(self.chat_template, encoding="utf-8")
        if self.stops or self.sampling or self.options["eos_token"] != self.spelling(self.end):
            (folder / GENERATION).write_text(as_json(self.generation_config), encoding="utf-8")
        return path

    @property
    def named_tokens(self) -> dict[str, str]:
        """`special_tokens`, with what begins a text and ends a document where no others are named."""
        begin = {} if self.begin is None else {"bos_token": self.spelling(self.begin)}
        return begin | {"eos_token": self.spelling(self.end)} | dict(self.special_tokens)

    @property
    def options(self) -> dict[str, Any]:
        """What tokenizer_config.json holds."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.begin is not None,
            **self.named_tokens,
        }

    @property
    def generation_config(self) -> dict[str, Any]:
        """What generation_config.json holds."""
        ends = [self.end, *sorted(self.stops - {self.end})]
        ids = {"bos_token_id": self.begin, "eos_token_id": ends if len(ends) > 1 else self.end}
        return ids | dict(self.sampling)

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

    adds_space = False
    """Whether `encode` puts a space before a text, as SentencePiece does; `decode` takes it away."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, a whole text; bytes that are no UTF-8 become U+FFFD."""
        text = self.bytes_of(ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.adds_space else text

    def decode_marked(self, ids: Iterable[int]) -> str:
        """The text of `ids` with special tokens written out: the inverse of `encode_marked`."""
        return b"".join(self.pieces[i] or self.spelling(i).encode() for i in ids if 0 <= i < self.vocab_size).decode(
            "utf-8", "replace"
        )

    def decoder(self) -> Decoder:
        """A decoder for tokens that come one by one."""
        return Decoder(self)


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "replace") if isinstance(text, str) else text


def as_str(text: str | bytes) -> str:
    """Half a surrogate pair is none of Unicode's characters: "?", as `_bytes` has it."""
    return text.decode("utf-8") if isinstance(text, bytes) else text.encode("utf-8", "replace").decode("utf-8")
