"""The tokenizer of a published model, with the tokens that begin and end a text."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizer_config import BESIDE, CONFIG
from synthe_core.data.tokenizers import FileTokenizer, Tokenizer, read_tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice
from synthe_core.interop.huggingface.published import Published

MARK = "\N{OGHAM LETTER MUIN}" * 4
"""Stands for an answer in a rendered conversation."""


def tokenizer_of(published: Published, vocab: int) -> Generator[Event, None, Tokenizer | None]:
    """The folder's tokenizer.json with the begin and end tokens of its configuration; None if it has none."""
    path = published.path / "tokenizer.json"
    if not path.is_file():
        yield Notice(f"{published.path} has no tokenizer.json: the checkpoint will not work on text", "warning")
        return None
    text = published.config.inner("text_config")
    ends = [published.config.get("eos_token_id"), text.get("eos_token_id")]
    try:
        beside = {name: file.read_bytes() for name in BESIDE if (file := published.path / name).is_file()}
        tokenizer = read_tokenizer(path.read_bytes(), str(path), {CONFIG: b"{}"} | beside, ends)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}", "copy it again") from None
    if turn := _turn_end(tokenizer):
        tokenizer.stops |= turn - {tokenizer.end}
    if tokenizer.stops:
        names = ", ".join(tokenizer.spelling(i) for i in sorted(tokenizer.stops))
        yield Notice(f"an answer may also end with {names}; {tokenizer.spelling(tokenizer.end)} ends a document")
    if tokenizer.end >= vocab:
        yield Notice(
            "the tokenizer has no end-of-text token in the model's vocabulary: texts end at their length limit",
            "warning",
        )
    return tokenizer


def _turn_end(tokenizer: Tokenizer) -> frozenset[int]:
    """The special token that the chat template writes after an answer, if it does."""
    if tokenizer.chat_template is None or not isinstance(tokenizer, FileTokenizer):
        return frozenset()
    turns: list[dict[str, Any]] = [{"role": "user", "content": "."}, {"role": "assistant", "content": MARK}]
    try:
        rest = chat.render(tokenizer, turns, answer=False).rpartition(MARK)[2]
    except InputError:  # said when it is used
        return frozenset()
    first = tokenizer.encode_marked(rest.lstrip())[:1]
    return frozenset(first) & tokenizer.special_ids
