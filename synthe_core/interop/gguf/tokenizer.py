"""The tokenizer in a GGUF file, as a tokenizer of the tokenizers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from synthe_core.data.longest_match import LongestMatchTokenizer, unescaped
from synthe_core.data.tokenizers import FileTokenizer, Tokenizer
from synthe_core.errors import InputError, unknown

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # token types
ENDS = ("eos", "eot", "eom")
MAX_TOKEN = 1024  # characters; every way to cut a token in two is tried
NO_TOKEN = 2**32 - 1  # -1 of an unsigned number
SPACE = "\u2581"  # SentencePiece's spelling of a space
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endoftext|>", "<EOT>")
"""Tokens that end an answer, whatever the file says, as in llama.cpp."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?" + _UPPER
_CASED = _WORD + "*" + _LOWER + "+SUFFIX|" + _WORD + "+" + _LOWER + "*SUFFIX"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = _CASED.replace("SUFFIX", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _CASED_REST
TEKKEN = _CASED.replace("SUFFIX", "") + r"|\p{N}" + _CASED_REST
PATTERNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "roberta-bpe"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "dbrx", "smaug-bpe"),
                    (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), (QWEN2,)),
    "qwen35": (QWEN35,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (O200K,)),
    "tekken": (TEKKEN,),
}  # fmt: skip
"""The expressions that cut a text before its pieces are merged, one after the other, by `tokenizer.ggml.pre`."""
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken")
"""A piece that is in the vocabulary is a token, whatever its merges are."""


class Metadata(Protocol):
    """The metadata of a file at a path."""

    path: Path

    def get(self, key: str, default: Any = None) -> Any: ...


def tokenizer_of(file: Metadata) -> Tokenizer:
    """The file's tokenizer with its begin and end tokens and its chat template. InputError for a kind without one."""
    tokens, kinds = _tokens(file)
    kind = str(file.get("tokenizer.ggml.model", ""))
    if kind == "rwkv":
        return _described(file, _longest_match(file, tokens, kinds), len(tokens))
    if kind == "gpt2":
        inner, begins = _byte_level(file, tokens), str(file.get("tokenizer.ggml.pre")) in WHOLE_WORDS
    elif kind == "llama":
        inner, begins = _sentencepiece(file, tokens, kinds), True
    else:
        raise unknown("tokenizer.ggml.model", kind[:80], ("gpt2", "llama", "rwkv"))
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    inner.add_tokens(added)  # they have ids of the vocabulary, which they keep
    return _with_ends(file, inner, tokens, _flag(file, "add_bos_token", begins))


def tokens_of(file: Metadata) -> list[str]:
    """The texts of its tokens by id. InputError for a file without them."""
    if file.get("tokenizer.ggml.tokens") is None:
        raise InputError(f"{file.path} has no tokenizer", "its model does not work on text")
    tokens = _texts(file, "tokens")
    if (longest := max(map(len, tokens), default=0)) > MAX_TOKEN:
        raise InputError(f"{file.path} has a token of {longest} characters, and may have {MAX_TOKEN}", "fetch it again")
    return tokens


def _tokens(file: Metadata) -> tuple[list[str], list[int]]:
    tokens, kinds = tokens_of(file), _numbers(file, "token_type", "iu")
    kinds = [1] * len(tokens) if kinds is None else kinds
    if len(kinds) != len(tokens):
        raise InputError(f"{file.path} has {len(tokens)} tokens and {len(kinds)} types of tokens", "fetch it again")
    return tokens, kinds


def _token_id(file: Metadata, key: str, count: int) -> int | None:
    """The token of a key, one of `count`; None where the file names none."""
    index = file.get(f"tokenizer.ggml.{key}_token_id")
    if index is None or (type(index) is int and index in (-1, NO_TOKEN)):
        return None
    if type(index) is not int or not 0 <= index < count:
        raise _wrong(file, f"{key}_token_id", index, f"a whole number below {count}")
    return index


def _with_ends(file: Metadata, inner: tokenizers.Tokenizer, tokens: Sequence[str], has_begin: bool) -> Tokenizer:
    def named(key: str) -> str | None:
        index = _token_id(file, key, len(tokens))
        return None if index is None else tokens[index]

    stated = [token for key in ENDS if (token := named(key)) is not None]
    known = [token for token in TURN_ENDS if inner.token_to_id(token) is not None]
    ends = list(dict.fromkeys([*stated, *known]))
    tokenizer = FileTokenizer(
        inner, str(file.path), begin=named("bos") if has_begin else None, end=ends[0] if ends else None
    )
    tokenizer.stops = frozenset(i for token in ends[1:] if (i := inner.token_to_id(token)) is not None)
    return _described(file, tokenizer, len(tokens))


def _described(file: Metadata, tokenizer: Tokenizer, count: int) -> Tokenizer:
    """The tokenizer with its chat template and the names that the template knows."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: _token_id(file, key, count) for key, name in names.items()}
    tokenizer.special_tokens = {name: tokenizer.spelling(i) for name, i in ids.items() if i is not None}
    template = file.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise InputError(f"{file.path}: tokenizer.chat_template is {str(template)[:60]!r}, and should be a text")
    tokenizer.chat_template = template
    return tokenizer


def _longest_match(file: Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> LongestMatchTokenizer:
    """RWKV's World tokenizer: tokens are escaped bytes. llama.cpp puts no token before a text."""
    specials = {i: token for i, token in enumerate(tokens) if kinds[i] == CONTROL}
    used = {i: token for i, token in enumerate(tokens) if kinds[i] not in (CONTROL, UNUSED)}
    end = _token_id(file, "eos", len(tokens))
    try:
        vocabulary = {i: unescaped(token) for i, token in used.items()}
        tokenizer = LongestMatchTokenizer(vocabulary, specials, str(file.path), 0 if end is None else end)
    except ValueError as error:
        raise InputError(f"{file.path} has no valid tokenizer: {error}", "fetch it again") from None
    if _flag(file, "add_bos_token", False):
        tokenizer.begin = _token_id(file, "bos", len(tokens))
    ends = (_token_id(file, key, len(tokens)) for key in ENDS)
    tokenizer.stops = frozenset(i for i in ends if i is not None) - {tokenizer.end}
    return tokenizer


def _wrong(file: Metadata, key: str, value: Any, expected: str) -> InputError:
    return InputError(
        f"{file.path}: tokenizer.ggml.{key} is {str(value)[:60]!r}, and should be {expected}", "fetch the file again"
    )


def _texts(file: Metadata, key: str) -> list[str]:
    """A list of texts; empty if it is missing."""
    value = file.get(f"tokenizer.ggml.{key}", [])
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence | np.ndarray)
        or not all(isinstance(each, str) for each in value)
    ):
        raise _wrong(file, key, value, "a list of texts")
    return list(value)


def _numbers(file: Metadata, key: str, kinds: str) -> list[Any] | None:
    """A list of numbers whose type numpy counts among `kinds`; None if it is missing."""
    if (value := file.get(f"tokenizer.ggml.{key}")) is None:
        return None
    values = np.asarray(value)
    if values.ndim != 1 or (values.size and (values.dtype.kind not in kinds or np.isnan(values).any())):
        raise _wrong(file, key, value, "a list of numbers")
    return values.tolist()


def _flag(file: Metadata, key: str, default: bool) -> bool:
    value = file.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise _wrong(file, key, value, "true or false")
    return value


def _vocabulary(file: Metadata, tokens: Sequence[str]) -> dict[str, int]:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise InputError(f"{file.path} has the token {twice[:40]!r} twice", "fetch it again")
    return vocab


def _byte_level(file: Metadata, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE."""
    pre = str(file.get("tokenizer.ggml.pre", "gpt-2"))
    if pre not in PATTERNS:
        raise unknown("tokenizer.ggml.pre", pre[:80], PATTERNS)
    merges = [tuple(merge.split(" ")) for merge in _texts(file, "merges")]
    if any(len(pair) != 2 for pair in merges):
        raise InputError(f"{file.path} has a merge that is not of two tokens", "fetch it again")
    inner = _tokenizer(file, vocab=_vocabulary(file, tokens), merges=merges, ignore_merges=pre in WHOLE_WORDS)
    cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in PATTERNS[pre]]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(file: Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of all neighbours, those merge first whose piece has the highest score."""
    scores = _numbers(file, "scores", "iuf")
    if scores is None or len(scores) != len(tokens):
        raise InputError(f"{file.path} has no score for each of its tokens", "fetch it again")
    vocab = _vocabulary(file, tokens)
    unknown_token = file.get("tokenizer.ggml.unknown_token_id", 0)
    if type(unknown_token) is not int:
        raise _wrong(file, "unknown_token_id", unknown_token, "a whole number")
    inner = _tokenizer(
        file,
        vocab=vocab,
        merges=_merges(vocab, dict(zip(tokens, scores, strict=True)), kinds),
        unk_token=tokens[unknown_token] if 0 <= unknown_token < len(tokens) else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = _flag(file, "add_space_prefix", True)
    inner.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return inner


def _merges(vocab: Mapping[str, int], scores: Mapping[str, float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, by its score; order within a piece as in transformers."""
    merges = []
    for piece, index in vocab.items():
        if kinds[index] in (CONTROL, USER_DEFINED):
            continue
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = sorted((vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab)
        merges += [(scores[piece], len(a), len(b), a, b) for _, _, a, b in pairs]
    merges.sort(key=lambda each: each[:3], reverse=True)
    return [(a, b) for *_, a, b in merges]


def _tokenizer(file: Metadata, **arguments: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(**arguments))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file.path} has no valid tokenizer: {str(error)[:200]}", "fetch it again") from None
