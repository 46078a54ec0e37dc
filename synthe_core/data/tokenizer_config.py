"""The files beside a tokenizer.json, in transformers' format: special tokens, chat template, what ends an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from synthe_core.data.byte_level import END, bytes_model, is_bytes_model

CHAT = "chat_template.jinja"
"""How messages become a prompt."""
CONFIG = "tokenizer_config.json"
"""The special tokens by name, and whether `bos_token` begins every text."""
GENERATION = "generation_config.json"
"""The ids that end an answer, the end of a document first, and defaults of sampling."""
BESIDE = (CONFIG, CHAT, GENERATION)
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]", "<|im_end|>")
"""Names under which a tokenizer.json may hold its end of document, the likeliest first."""
MARKS = "synthe"
"""The key under which a tokenizer.json of an earlier version names its begin and end."""

Lookup = Callable[[str], int | None]


@dataclass(frozen=True)
class TokenizerConfig:
    """What the files say. options: tokenizer_config.json, None without one. generation: generation_config.json.

    chat_template: the template's file, or what the options hold.
    """

    options: dict[str, Any] | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    @classmethod
    def parse(cls, files: Mapping[str, bytes]) -> TokenizerConfig:
        """From the contents of those of the files BESIDE that exist. ValueError if one is damaged."""
        options = _mapping(CONFIG, files[CONFIG]) if CONFIG in files else None
        generation = _mapping(GENERATION, files[GENERATION]) if GENERATION in files else {}
        template = _template(options or {})
        if CHAT in files:
            try:
                template = files[CHAT].decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{CHAT} is not UTF-8 text (byte {error.start})") from None
        return cls(options, generation, template)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by name, as a chat template knows them."""
        options = self.options or {}
        extra = options.get("extra_special_tokens")
        named = {name: options[name] for name in NAMES if name in options}
        named |= extra if isinstance(extra, dict) else {}
        return {str(name): text for name, token in named.items() if (text := content_of(token)) is not None}

    def ends(self, lookup: Lookup, spelling: Callable[[int], str | None], further: Iterable[Any] = ()) -> list[str]:
        """The tokens that end an answer, the end of a document first. further: `eos_token_id` of other files, or
        names."""
        names: list[str] = []
        for each in (self.generation.get("eos_token_id"), *further):
            listed = [each] if isinstance(each, str) else [spelling(i) for i in token_ids(each)]
            names += [name for name in listed if name and lookup(name) is not None]
        stated = self.special_tokens.get("eos_token")
        if stated is not None and lookup(stated) is not None:
            names.append(stated)
        return list(dict.fromkeys(names))

    def begin(self, lookup: Lookup, prefix: Callable[[], str | None]) -> str | None:
        """The token before every text. prefix: what tokenizer.json itself puts there."""
        if self.options is None:
            return None
        add, stated = self.options.get("add_bos_token"), self.special_tokens.get("bos_token")
        if add is False:
            return None
        return stated if add is True and stated is not None and lookup(stated) is not None else prefix()

    @property
    def sampling(self) -> dict[str, Any]:
        """generation_config.json without token ids."""
        ignored = (*TOKEN_IDS, "transformers_version", "_from_model_config")
        return {key: value for key, value in self.generation.items() if key not in ignored}


def likeliest_end(added: Iterable[tokenizers.AddedToken]) -> str | None:
    """The name of the end of a document among the added tokens of a tokenizer."""
    specials = {token.content for token in added if token.special}
    return next((token for token in ENDS if token in specials), None)


def prefix(inner: tokenizers.Tokenizer) -> str | None:
    """The token that tokenizer.json puts before a text."""
    bare, with_special = (inner.encode("a", add_special_tokens=special).tokens for special in (False, True))
    return with_special[0] if len(with_special) > len(bare) and with_special[1 : 1 + len(bare)] == bare else None


def to_current_format(values: dict[str, Any]) -> dict[str, Any]:
    """What a tokenizer.json holds, as it is written now: for bytes a model of its own, and no key of ours."""
    if is_bytes_model(values):
        return bytes_model()
    return {key: value for key, value in values.items() if key != MARKS}


def token_ids(value: Any) -> list[int]:
    """The ids of an `eos_token_id`, which is a number or a list of them; what is neither is left out."""
    listed = value if isinstance(value, list) else [value]
    return [i for i in listed if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31]


def content_of(token: Any) -> str | None:
    """The text of a special token in tokenizer_config.json, which may be in a mapping."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _template(options: Mapping[str, Any]) -> str | None:
    """The chat template of tokenizer_config.json; of several, the default one."""
    stated = options.get("chat_template")
    if isinstance(stated, list):
        by_name = {each.get("name"): each.get("template") for each in stated if isinstance(each, dict)}
        stated = by_name.get("default")
    return stated if isinstance(stated, str) else None


def _mapping(name: str, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no mapping")
    return values
