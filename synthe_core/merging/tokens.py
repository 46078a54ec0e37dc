"""Giving models one vocabulary: the base's, the union, or another one. Embeddings are reordered to it.

A token that a model does not have gets the base's row, or else the mean of the rows of the models that have it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.data.tokenizer_limits import MAX_BYTES, MAX_VALUES
from synthe_core.errors import InputError
from synthe_core.merging.config import TokenizerSpec
from synthe_core.merging.hashed_file import TensorInfo
from synthe_core.merging.inputs import open_input
from synthe_core.merging.inputs.model import Model, View
from synthe_core.storage.json_reader import read_json

ROWS = re.compile(r"(^|[._])(embed|wte|word|lm_head|head|output)", re.IGNORECASE)
"""Names of tensors that may have one row for each token."""

Content = dict[str, Any]
Vocabulary = dict[str, int]


class Aligned(NamedTuple):
    """Models with equal vocabularies: those to merge, the base, and the new vocabulary (None if unchanged)."""

    models: list[Model]
    base: Model | None
    vocab: int | None
    tokenizer: Content | None
    notices: list[str]


def align(models: Sequence[Model], base: Model | None, spec: TokenizerSpec | None) -> Aligned:
    """The models as they are if their tokenizers agree, otherwise views of them in the vocabulary of `spec`."""
    everyone = list(dict.fromkeys([*([base] if base is not None else []), *models]))
    contents = [model.tokenizer for model in everyone]
    same = all(_vocabulary(content) == _vocabulary(contents[0]) for content in contents)
    if spec is None:
        if not same:
            other = next(
                m for m, c in zip(everyone, contents, strict=True) if _vocabulary(c) != _vocabulary(contents[0])
            )
            raise InputError(
                f"{everyone[0].named} and {other.named} have different tokenizers",
                "choose: --tokenizer base, --tokenizer union, or the path of one",
            )
        notices = [] if all(_rules(content) == _rules(contents[0]) for content in contents) else [RULES]
        return Aligned(list(models), base, None, None, notices)
    target, source = _target(spec, everyone, contents)
    vocabulary = _vocabulary(target)
    vocab = max(vocabulary.values(), default=-1) + 1
    if source is not None and source.vocab is not None:
        vocab = max(vocab, source.vocab)  # padded embeddings keep their size
    multiple = spec.pad_to_multiple_of or 1
    vocab = -(-vocab // multiple) * multiple
    if same and vocabulary == _vocabulary(contents[0]) and all(model.vocab == vocab for model in everyone):
        return Aligned(list(models), base, None, None, [])
    views = {model: ReorderedVocabulary(model, vocabulary, vocab, everyone) for model in everyone}
    changed = target if target is not everyone[0].tokenizer else None
    return Aligned([views[m] for m in models], base and views[base], vocab, changed, [])


RULES = "the tokenizers have the same tokens and split text differently: the first model's is used"


class ReorderedVocabulary(View):
    """A model with the rows of its embeddings in the order of another vocabulary."""

    def __init__(self, inner: Model, vocabulary: Vocabulary, vocab: int, donors: Sequence[Model]) -> None:
        super().__init__(inner)
        self._rows = vocab
        own = _vocabulary(inner.tokenizer)
        self._from = torch.full((vocab,), -1, dtype=torch.int64)
        self._missing: list[tuple[int, str]] = []
        for token, row in vocabulary.items():
            if token in own:
                self._from[row] = own[token]
            else:
                self._missing.append((row, token))
        without_token = torch.ones(vocab, dtype=torch.bool)
        without_token[list(vocabulary.values())] = False
        for row in without_token.nonzero().flatten().tolist():
            self._from[row] = row if row < (inner.vocab or 0) else -1
        self._donors = [(model, _vocabulary(model.tokenizer)) for model in donors]

    @property
    def vocab(self) -> int | None:
        return self._rows

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {
            name: info._replace(shape=(self._rows, *info.shape[1:])) if self._has_rows(name, info) else info
            for name, info in self.inner.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        stored = self.inner.read(name)
        if not self._has_rows(name, self.inner.tensors[name]):
            return stored
        rows_from = self._from.clamp(0, len(stored) - 1)
        result = stored[rows_from]
        result[self._from < 0] = 0
        others: dict[Model, Tensor] = {}
        for row, token in self._missing:
            owners = [(model, vocabulary[token]) for model, vocabulary in self._donors if token in vocabulary]
            if owners and owners[0][0] is self._donors[0][0]:
                owners = owners[:1]  # the base's
            rows = [others.setdefault(m, _read(others, m, name))[i].to(torch.float32) for m, i in owners]
            if rows:
                result[row] = torch.stack(rows).mean(0).to(result.dtype)
        return result

    def _has_rows(self, name: str, info: TensorInfo) -> bool:
        return bool(info.shape) and info.shape[0] == self.inner.vocab and bool(ROWS.search(name))


def _read(cache: Mapping[Model, Tensor], model: Model, name: str) -> Tensor:
    return cache[model] if model in cache else model.read(name)


def _target(spec: TokenizerSpec, everyone: Sequence[Model], contents: Sequence[Content | None]) -> tuple[Any, Any]:
    """The content of the result's tokenizer, and its model (None if it is of no input)."""
    for model, content in zip(everyone, contents, strict=True):
        if content is None:
            raise InputError(f"{model.named} has no tokenizer.json", "leave out --tokenizer")
    if spec.source == "base":
        return contents[0], everyone[0]
    if spec.source == "union":
        distinct = [c for i, c in enumerate(contents) if all(_vocabulary(c) != _vocabulary(b) for b in contents[:i])]
        return (contents[0], everyone[0]) if len(distinct) == 1 else (union(distinct, everyone), None)
    for model in everyone:
        if spec.source in (model.named, str(model.path)):
            return model.tokenizer, model
    path = Path(spec.source).expanduser()
    if path.is_file():
        return read_json(path, MAX_BYTES, MAX_VALUES), None
    if (path / "tokenizer.json").is_file():
        return read_json(path / "tokenizer.json", MAX_BYTES, MAX_VALUES), None
    model_of_source = open_input(spec.source)
    if getattr(model_of_source, "tokenizer", None) is None:
        raise InputError(f"{spec.source} has no tokenizer.json", "--tokenizer is base, union or the path of one")
    return model_of_source.tokenizer, None


def union(contents: Sequence[Any], models: Sequence[Model]) -> Content:
    """The first tokenizer, extended by the tokens of the others.

    Pieces of the others are appended to its pieces; for BPE, so are their merges. Added tokens stay added tokens.
    """
    result = copy.deepcopy(contents[0])
    kinds = {content.get("model", {}).get("type") for content in contents}
    if len(kinds) > 1 or kinds <= {None}:
        names = ", ".join(model.named for model in models)
        raise InputError(
            f"the tokenizers of {names} are of different kinds and have no union", "choose --tokenizer base, or a path"
        )
    model, ids = result["model"], _vocabulary(result)
    merges = {_merge(each): None for each in model.get("merges", ())}
    for token in sorted(ids, key=ids.__getitem__):  # with added tokens, or the library would change their ids
        _add_token(model, token, ids[token])
    for content in contents[1:]:
        added = {token["content"]: token for token in content.get("added_tokens", ())}
        theirs = _vocabulary(content)
        for token in sorted(theirs, key=theirs.__getitem__):
            if token in ids:
                continue
            row = ids[token] = max(ids.values(), default=-1) + 1
            _add_token(model, token, row, content["model"]["vocab"])
            if token in added:
                result.setdefault("added_tokens", []).append({**added[token], "id": row})
        merges |= {_merge(each): None for each in content["model"].get("merges", ())}
    if merges:
        pairs = isinstance(next(iter(model["merges"]), []), list)
        model["merges"] = [list(each) if pairs else " ".join(each) for each in merges]
    return result


def _add_token(model: Content, token: str, row: int, source: Any = ()) -> None:
    """Gives `token` the id `row` in a tokenizer's vocabulary: a mapping, or a list of pieces with scores."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab.setdefault(token, row)
    elif row >= len(vocab):
        if row > len(vocab):
            raise InputError(
                "tokenizers of scored pieces with gaps have no union", "choose --tokenizer base, or a path"
            )
        vocab.append([token, next((entry[1] for entry in source if entry[0] == token), 0.0)])


def _merge(merge: Any) -> tuple[str, ...]:
    return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


def _vocabulary(content: Content | None) -> Vocabulary:
    """token -> id with added tokens; for bytes, the ids name the tokens; empty without a tokenizer."""
    if content is None:
        return {}
    if content.get("type") == "bytes":
        return {f"byte {i}": i for i in range(256)} | {"end of document": 256}
    vocab = content.get("model", {}).get("vocab", {})
    tokens = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    return tokens | {token["content"]: token["id"] for token in content.get("added_tokens", ())}


def _rules(content: Content | None) -> Any:
    """How text is split into tokens, apart from the vocabulary."""
    if content is None:
        return None
    model = content.get("model", {})
    merges = [_merge(each) for each in model.get("merges", ())]
    return merges, model.get("type"), *(content.get(key) for key in ("normalizer", "pre_tokenizer"))
