"""A tokenizer in the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthe_core.data.longest_match import LongestMatchTokenizer, escaped
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.interop.gguf.tokenizer import CONTROL, ENDS, PATTERNS, UNUSED, USER_DEFINED, tokenizer_of

NORMAL, BYTE = 1, 6
SAMPLES = (
    "The café's 12345 naïve  words, isn't IT?\n\n\tdef f(x):\r\n    return x**2  # 日本語 テスト\n",
    " leading, trailing and   inner   spaces   \n \n\n  1,234.50 €100 3rd v2.0 ",
    "Don't we'll THEY'VE i'm HelloWorld camelCase snake_case UPPER lower 한국어 Привет мир مرحبا ไทย",
    "emoji 😀👍🏽 combining é ä\u0301 zero\u200bwidth \u00a0 nbsp ...!!! ??? <<>> {}[] $%^&*",
    "<s>[INST] <|im_start|>user\n</s> \\n \x00\x07 \x7f",
)
"""Texts that a tokenizer must cut in the same way after a round trip: numbers, cases, contractions, spaces, scripts."""


class MetadataOf:
    """What `tokenizer_of` reads of a file."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path, self.metadata = path, metadata

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(key, default)


def tokenizer_metadata(tokenizer: Tokenizer, vocab: int, source: Path) -> dict[str, Any]:
    """The metadata from which the same ids follow for the same text. InputError for a kind that the format has no name
    for; every candidate is tried on `SAMPLES`.

    vocab: rows of the embedding; a file names them all.
    """
    if isinstance(tokenizer, LongestMatchTokenizer):
        return _marks(tokenizer) | _longest_match(tokenizer, vocab)
    content = json.loads(tokenizer.to_json())
    if (model := content.get("model", {})).get("type") != "BPE":
        raise _unsupported(source, f"a tokenizer of type {model.get('type')}")
    common = _common(tokenizer, content, vocab)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", [])]
    if model.get("byte_fallback"):
        candidates = [_sentencepiece(content, common, merges, prefix) for prefix in (True, False)]
    else:
        kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}
        candidates = [common | kind | {"tokenizer.ggml.pre": pre} for pre in _one_for_each(PATTERNS)]
    expected = [tokenizer.encode(text) for text in SAMPLES]
    for metadata in candidates:
        read = tokenizer_of(MetadataOf(source, metadata))
        if [read.encode(text) for text in SAMPLES] == expected:
            return metadata
    raise _unsupported(source, "how this tokenizer cuts a text")


def _one_for_each(patterns: dict[str, tuple[str, ...]]) -> list[str]:
    """The first name of each different list of expressions."""
    return list({expressions: name for name, expressions in reversed(patterns.items())}.values())[::-1]


def _common(tokenizer: Tokenizer, content: dict[str, Any], vocab: int) -> dict[str, Any]:
    ids: dict[str, int] = dict(content["model"]["vocab"])
    added = {each["content"]: each for each in content.get("added_tokens", [])}
    ids |= {name: each["id"] for name, each in added.items()}
    names = {index: name for name, index in ids.items()}
    tokens, kinds = [], []
    for index in range(max(vocab, *names) if vocab > max(names) else max(names) + 1):
        name = names.get(index)
        tokens.append(f"[PAD{index}]" if name is None else name)
        special = added[name]["special"] if name in added else None
        kinds.append(UNUSED if name is None else NORMAL if special is None else CONTROL if special else USER_DEFINED)
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds} | _marks(tokenizer)


def _marks(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokens that begin and end a text, and the chat template."""
    metadata: dict[str, Any] = {
        "tokenizer.ggml.eos_token_id": tokenizer.end,
        "tokenizer.ggml.add_bos_token": tokenizer.begin is not None,
    }
    if tokenizer.begin is not None:
        metadata["tokenizer.ggml.bos_token_id"] = tokenizer.begin
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _longest_match(tokenizer: LongestMatchTokenizer, vocab: int) -> dict[str, Any]:
    """A token that ends an answer beside the end of a text is the one of a turn."""
    tokens, kinds = [], []
    for i in range(max(vocab, tokenizer.vocab_size)):
        piece = tokenizer.pieces[i] if i < tokenizer.vocab_size else b""
        kinds.append(NORMAL if piece else CONTROL if i in tokenizer.specials else UNUSED)
        tokens.append(escaped(piece) if piece else tokenizer.specials.get(i, f"[PAD{i}]"))
    ends = [i for i in sorted(tokenizer.stops) if i < tokenizer.vocab_size]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        **{f"tokenizer.ggml.{key}_token_id": i for key, i in zip(ENDS[1:], ends, strict=False)},
    }


def _sentencepiece(
    content: dict[str, Any], common: dict[str, Any], merges: list[str], has_prefix: bool
) -> dict[str, Any]:
    """A piece's score is the rank of its first merge, the first the highest."""
    tokens, kinds = common["tokenizer.ggml.tokens"], list(common["tokenizer.ggml.token_type"])
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault(pair.replace(" ", "", 1), index)
    for index, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and kinds[index] == NORMAL:
            kinds[index] = BYTE
    unknown = content["model"].get("unk_token")
    return common | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [float(-rank.get(token, len(merges))) for token in tokens],
        "tokenizer.ggml.add_space_prefix": has_prefix,
        "tokenizer.ggml.unknown_token_id": tokens.index(unknown) if unknown in tokens else 0,
    }


def _unsupported(source: Path, what: str) -> InputError:
    return InputError(
        f"{source}: {what} has no name in the GGUF format",
        "export hf writes any tokenizer",
    )
