"""The tokenizer of a published model, with the tokens that begin and end a text."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import tokenizers

from synthe_core.data.tokenizers import CHAT, FileTokenizer, Tokenizer, load_tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice
from synthe_core.interop.huggingface.published import Published


def tokenizer_of(published: Published, vocab: int) -> Generator[Event, None, Tokenizer | None]:
    """The folder's tokenizer.json with the begin and end tokens of its configuration; None if it has none."""
    path = published.path / "tokenizer.json"
    if not path.is_file():
        yield Notice(f"{published.path} has no tokenizer.json: the checkpoint will not work on text", "warning")
        return None
    plain = load_tokenizer(path)
    inner = tokenizers.Tokenizer.from_file(str(path))
    options = published.json("tokenizer_config.json")
    ends = _ends(published, inner, options)
    end = ends[0] if ends and inner.token_to_id(ends[0]) != plain.end else None
    begin = _begin(inner, options)
    tokenizer = FileTokenizer(inner, str(path), begin=begin, end=end) if begin or end else plain
    tokenizer.chat_template = _chat_template(published, options)
    tokenizer.stops = frozenset(i for name in ends[1:] if (i := inner.token_to_id(name)) is not None)
    if len(ends) > 1:
        yield Notice(f"the model may also end with {', '.join(ends[1:])}; here only {ends[0]} ends a text")
    if tokenizer.end >= vocab:
        yield Notice(
            "the tokenizer has no end-of-text token in the model's vocabulary: texts end at their length limit",
            "warning",
        )
    return tokenizer


def _ends(published: Published, inner: tokenizers.Tokenizer, options: dict[str, Any]) -> list[str]:
    """The tokens at which generation stops; the first ends a text."""
    ids = published.json("generation_config.json").get("eos_token_id")
    ids = published.config.get("eos_token_id") if ids is None else ids
    listed = [ids] if isinstance(ids, int) else ids if isinstance(ids, list) else []
    names = [inner.id_to_token(i) for i in listed if isinstance(i, int)]
    known_names = [name for name in names if name is not None]
    stated = _content(options.get("eos_token"))
    return known_names or ([stated] if stated is not None and inner.token_to_id(stated) is not None else [])


def _begin(inner: tokenizers.Tokenizer, options: dict[str, Any]) -> str | None:
    """The token before every text: from tokenizer_config.json, or else from the template of tokenizer.json."""
    add_begin, stated = options.get("add_bos_token"), _content(options.get("bos_token"))
    if add_begin is False:
        return None
    if add_begin is True and stated is not None and inner.token_to_id(stated) is not None:
        return stated
    bare, with_special = (inner.encode("a", add_special_tokens=special).tokens for special in (False, True))
    return with_special[0] if len(with_special) > len(bare) and with_special[1 : 1 + len(bare)] == bare else None


def _chat_template(published: Published, options: dict[str, Any]) -> str | None:
    """The chat template: a file, or a key of tokenizer_config.json; of several, the default one."""
    path = published.path / CHAT
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", "copy it again") from None
    stated = options.get("chat_template")
    if isinstance(stated, list):
        by_name = {each.get("name"): each.get("template") for each in stated if isinstance(each, dict)}
        stated = by_name.get("default")
    return stated if isinstance(stated, str) else None


def _content(token: Any) -> str | None:
    """The text of a special token in tokenizer_config.json, which may be in a mapping."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
