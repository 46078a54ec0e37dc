"""One vocabulary for models that have several: the base's, the union, or another; embeddings are re-ordered to it.

A token that a model lacks gets the base's row, where the base has it, else the mean of the rows of those that do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.config import TokenizerSpec
from synthe_core.merging.hashed_file import Facts
from synthe_core.merging.inputs import open_input
from synthe_core.merging.inputs.model import Model, View
from synthe_core.storage.json_reader import read_json

ROWS = re.compile(r"(^|[._])(embed|wte|word|lm_head|head|output)", re.IGNORECASE)
"""Names of tensors that may have a row for every token."""

Content = dict[str, Any]
Vocabulary = dict[str, int]


class Aligned(NamedTuple):
    """Models whose vocabularies agree: those to merge, the base, and what changed (None where nothing did)."""

    models: list[Model]
    base: Model | None
    vocab: int | None
    tokenizer: Content | None
    notices: list[str]


def align(models: Sequence[Model], base: Model | None, asked: TokenizerSpec | None) -> Aligned:
    """The models as they are where their tokenizers agree, else seen through the vocabulary that was `asked` for."""
    everyone = list(dict.fromkeys([*([base] if base is not None else []), *models]))
    contents = [model.tokenizer for model in everyone]
    same = all(_vocabulary(content) == _vocabulary(contents[0]) for content in contents)
    if asked is None:
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
    target, chosen = _target(asked, everyone, contents)
    wanted = _vocabulary(target)
    vocab = max(wanted.values(), default=-1) + 1
    if chosen is not None and chosen.vocab is not None:
        vocab = max(vocab, chosen.vocab)  # rows that no token has: a padded embedding stays as it is
    multiple = asked.pad_to_multiple_of or 1
    vocab = -(-vocab // multiple) * multiple
    if same and wanted == _vocabulary(contents[0]) and all(model.vocab == vocab for model in everyone):
        return Aligned(list(models), base, None, None, [])
    views = {model: Respelt(model, wanted, vocab, everyone) for model in everyone}
    changed = target if target is not everyone[0].tokenizer else None
    return Aligned([views[m] for m in models], base and views[base], vocab, changed, [])


RULES = "the tokenizers have the same tokens and cut text differently: the first model's is kept"


class Respelt(View):
    """A model whose rows for tokens are in the order of another vocabulary."""

    def __init__(self, inner: Model, wanted: Vocabulary, vocab: int, donors: Sequence[Model]) -> None:
        super().__init__(inner)
        self._rows = vocab
        own = _vocabulary(inner.tokenizer)
        self._from = torch.full((vocab,), -1, dtype=torch.int64)
        self._missing: list[tuple[int, str]] = []
        for token, row in wanted.items():
            if token in own:
                self._from[row] = own[token]
            else:
                self._missing.append((row, token))
        unnamed = torch.ones(vocab, dtype=torch.bool)
        unnamed[list(wanted.values())] = False
        for row in unnamed.nonzero().flatten().tolist():
            self._from[row] = row if row < (inner.vocab or 0) else -1
        self._donors = [(model, _vocabulary(model.tokenizer)) for model in donors]

    @property
    def vocab(self) -> int | None:
        return self._rows

    @property
    def tensors(self) -> dict[str, Facts]:
        return {
            name: facts._replace(shape=(self._rows, *facts.shape[1:])) if self._has_rows(name, facts) else facts
            for name, facts in self.inner.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        stored = self.inner.read(name)
        if not self._has_rows(name, self.inner.tensors[name]):
            return stored
        kept = self._from.clamp(0, len(stored) - 1)
        result = stored[kept]
        result[self._from < 0] = 0
        others: dict[Model, Tensor] = {}
        for row, token in self._missing:
            known = [(model, vocabulary[token]) for model, vocabulary in self._donors if token in vocabulary]
            if known and known[0][0] is self._donors[0][0]:
                known = known[:1]  # the base's
            rows = [others.setdefault(m, _read(others, m, name))[i].to(torch.float32) for m, i in known]
            if rows:
                result[row] = torch.stack(rows).mean(0).to(result.dtype)
        return result

    def _has_rows(self, name: str, facts: Facts) -> bool:
        return bool(facts.shape) and facts.shape[0] == self.inner.vocab and bool(ROWS.search(name))


def _read(known: Mapping[Model, Tensor], model: Model, name: str) -> Tensor:
    return known[model] if model in known else model.read(name)


def _target(asked: TokenizerSpec, everyone: Sequence[Model], contents: Sequence[Content | None]) -> tuple[Any, Any]:
    """The content of the tokenizer that the result gets, and the model it is from where that is one."""
    for model, content in zip(everyone, contents, strict=True):
        if content is None:
            raise InputError(f"{model.named} has no tokenizer.json", "leave out --tokenizer")
    if asked.source == "base":
        return contents[0], everyone[0]
    if asked.source == "union":
        distinct = [c for i, c in enumerate(contents) if all(_vocabulary(c) != _vocabulary(b) for b in contents[:i])]
        return (contents[0], everyone[0]) if len(distinct) == 1 else (union(distinct, everyone), None)
    for model in everyone:
        if asked.source in (model.named, str(model.path)):
            return model.tokenizer, model
    path = Path(asked.source).expanduser()
    if path.is_file():
        return read_json(path), None
    if (path / "tokenizer.json").is_file():
        return read_json(path / "tokenizer.json"), None
    found = open_input(asked.source)
    if getattr(found, "tokenizer", None) is None:
        raise InputError(f"{asked.source} has no tokenizer.json", "--tokenizer is base, union or the path of one")
    return found.tokenizer, None


def union(contents: Sequence[Any], models: Sequence[Model]) -> Content:
    """The first tokenizer with every other's tokens behind its own: its text is cut as before wherever it can be.

    Pieces of the others join its pieces, and of BPE their merges come after its own. Added tokens stay added tokens.
    """
    result = copy.deepcopy(contents[0])
    kinds = {content.get("model", {}).get("type") for content in contents}
    if len(kinds) > 1 or kinds <= {None}:
        names = ", ".join(model.named for model in models)
        raise InputError(
            f"the tokenizers of {names} are of different kinds and have no union", "choose --tokenizer base, or a path"
        )
    model, taken = result["model"], _vocabulary(result)
    merges = {_merge(each): None for each in model.get("merges", ())}
    for token in sorted(taken, key=taken.__getitem__):  # added tokens as well, or the library would move their ids
        _enter(model, token, taken[token])
    for content in contents[1:]:
        added = {token["content"]: token for token in content.get("added_tokens", ())}
        theirs = _vocabulary(content)
        for token in sorted(theirs, key=theirs.__getitem__):
            if token in taken:
                continue
            row = taken[token] = max(taken.values(), default=-1) + 1
            _enter(model, token, row, content["model"]["vocab"])
            if token in added:
                result.setdefault("added_tokens", []).append({**added[token], "id": row})
        merges |= {_merge(each): None for each in content["model"].get("merges", ())}
    if merges:
        pairs = isinstance(next(iter(model["merges"]), []), list)
        model["merges"] = [list(each) if pairs else " ".join(each) for each in merges]
    return result


def _enter(model: Content, token: str, row: int, source: Any = ()) -> None:
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


def _merge(written: Any) -> tuple[str, ...]:
    return tuple(written.split(" ")) if isinstance(written, str) else tuple(written)


def _vocabulary(content: Content | None) -> Vocabulary:
    """token -> id, added tokens included; of bytes, and where there is no tokenizer, the ids stand for themselves."""
    if content is None:
        return {}
    if content.get("type") == "bytes":
        return {f"byte {i}": i for i in range(256)} | {"end of document": 256}
    vocab = content.get("model", {}).get("vocab", {})
    found = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    return found | {token["content"]: token["id"] for token in content.get("added_tokens", ())}


def _rules(content: Content | None) -> Any:
    """How text is cut, beside which tokens there are."""
    if content is None:
        return None
    model = content.get("model", {})
    merges = [_merge(each) for each in model.get("merges", ())]
    return merges, model.get("type"), *(content.get(key) for key in ("normalizer", "pre_tokenizer"))
