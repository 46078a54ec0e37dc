"""The verb `introspect`: a report of one model reading one text, for the page, the terminal and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, unknown
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.interop.huggingface.families import ARCHITECTURES, plan
from synthe_core.interop.huggingface.published import CONFIG, Config, UnsupportedModel
from synthe_core.introspection.memories import Fate, fate, memory_series
from synthe_core.introspection.observe import Observation, Predictions, no_check, observe
from synthe_core.introspection.reads import Reads, follow
from synthe_core.introspection.series import Figure, Series, collect
from synthe_core.layers.trace import GROUPS
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.storage.checkpoint import Checkpoint

LONGEST = 32_768  # tokens of a text; every reading is followed to every token before it


@dataclass(frozen=True)
class Report:
    """What was recorded while a model read a text. `fates` are of the requested tokens."""

    name: str
    facts: dict[str, Any]
    pieces: list[str]
    ids: list[int]
    predictions: Predictions
    likeliest: list[list[str]]
    series: list[Series]
    figures: list[Figure]
    reads: list[Reads]
    fates: list[Fate]

    @property
    def bits(self) -> float:
        """Mean surprise in bits a token, without the first; NaN of an encoder, which predicts none."""
        return float(np.nanmean(self.predictions.bits)) if np.isfinite(self.predictions.bits).any() else math.nan


def introspect(
    path: Path,
    text: str,
    *,
    layers: str | None = None,
    what: Sequence[str] = (),
    tokens: Sequence[int] = (),
    device: str = "auto",
) -> Report:
    """Reads `text` with the model of a checkpoint and returns a report. See `examine`."""
    checkpoint, model, context = open_model(path, device)
    with context.activate():
        return examine(
            model,
            checkpoint.tokenizer(),
            text,
            name=checkpoint.recipe.name,
            layers=layers,
            what=what,
            tokens=tokens,
        )


def open_model(path: Path, device: str = "auto") -> tuple[Checkpoint, LanguageModel, ExecutionContext]:
    """A checkpoint, its model and the context of its passes; InputError for an encoder, which predicts no token."""
    checkpoint = Checkpoint.open(path)
    if isinstance(checkpoint.recipe.model, PublishedSpec):
        kind, known = checkpoint.recipe.model.architecture, ", ".join(ARCHITECTURES)
        if kind in ARCHITECTURES:
            try:
                plan(Config(path / CONFIG, checkpoint.recipe.model.config))
            except UnsupportedModel as error:
                raise InputError(f"{path} is run by transformers: {error.message}", error.hint) from None
        raise InputError(f"{path} is a {kind}, which our learners do not have", f"introspect reads learners: {known}")
    if checkpoint.recipe.model.head is not None:
        raise InputError(f"{path} is an encoder, which reads a text at once", "leave out --watch")
    context = context_for_recipe(checkpoint.recipe, device)
    return checkpoint, checkpoint.model(context.device).eval(), context


def examine(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    name: str = "model",
    layers: str | None = None,
    what: Sequence[str] = (),
    tokens: Sequence[int] = (),
) -> Report:
    """The report of `model` reading `text`.

    layers: the blocks to report, as `0-3,6`; all by default. what: groups of `GROUPS`; all by default.
    tokens: indices of tokens whose writes are followed through every memory.
    """
    ids = encode(tokenizer, text, model.vocab)
    return examine_tokens(model, tokenizer, ids, name=name, layers=layers, what=what, tokens=tokens)


def examine_tokens(
    model: LanguageModel,
    tokenizer: Tokenizer,
    ids: list[int],
    *,
    name: str = "model",
    layers: str | None = None,
    what: Sequence[str] = (),
    tokens: Sequence[int] = (),
) -> Report:
    """`examine` for a text that is tokenized already."""
    selected = groups(what)
    blocks = block_range(layers, model.spec.blocks)
    check_length(ids)
    check_tokens(tokens, len(ids))
    observed = observe(model, ids, memories="memory" in selected or bool(tokens))
    return report_of(model, tokenizer, observed, name=name, selected=selected, blocks=blocks, tokens=tokens)


def check_length(ids: Sequence[int]) -> None:
    """InputError for a text of too many tokens."""
    if len(ids) > LONGEST:
        raise InputError(f"the text has {len(ids):,} tokens", f"at most {LONGEST:,} can be analysed: give a part of it")


def check_tokens(tokens: Sequence[int], count: int) -> None:
    """InputError for an index that no token of a text of `count` has."""
    for token in tokens:
        if not 0 <= token < count:
            raise InputError(f"there is no token {token}: the text has {count}", "counting starts at 0")


@torch.inference_mode()
def report_of(
    model: Model,
    tokenizer: Tokenizer,
    observed: Observation,
    *,
    name: str = "model",
    selected: frozenset[str] = frozenset(GROUPS),
    blocks: frozenset[int] | None = None,
    tokens: Sequence[int] = (),
    check: Callable[[], None] = no_check,
    pieces: list[str] | None = None,
) -> Report:
    """The report of what was observed. It runs no pass of the model, which others may use meanwhile.

    selected: groups of figures. blocks: the blocks to report, None for all. tokens: as in `examine`. check: called
    before every memory is followed; what it raises ends the report. pieces: the text of each token, where that is not
    the tokenizer's.
    """
    ids = observed.tokens
    blocks = frozenset(range(model.spec.blocks)) if blocks is None else blocks
    observed = replace(
        observed, memory_calls=[call for call in observed.memory_calls if _is_selected(call.path, blocks)]
    )
    series, figures = collect(model, observed)
    reads, fates, more = _memories(observed, tokens, check)
    shown = [each for each in [*series, *more] if each.group in selected and _is_selected(each.path, blocks)]
    order = {each.path: number for number, each in reversed(list(enumerate(shown)))}
    shown.sort(key=lambda each: order[each.path])  # series of one learner are adjacent
    pieces = pieces or [token_text(tokenizer, token) for token in ids]
    likeliest = [[token_text(tokenizer, int(i)) for i in row] for row in observed.predictions.likeliest]
    shown_figures = [each for each in figures if each.group in selected and _is_selected(each.path, blocks)]
    return Report(
        name, facts(model, observed), pieces, ids, observed.predictions, likeliest, shown, shown_figures, reads, fates
    )


def _memories(
    observed: Observation, tokens: Sequence[int], check: Callable[[], None]
) -> tuple[list[Reads], list[Fate], list[Series]]:
    reads, fates, series = [], [], []
    for call in observed.memory_calls:
        check()
        reads_of_call = follow(call, len(observed.tokens))
        if reads_of_call is None:
            continue
        reads.append(reads_of_call)
        series += memory_series(call, reads_of_call)
        fates += [one for token in tokens if (one := fate(call, reads_of_call, token)) is not None]
    return reads, fates, series


def encode(tokenizer: Tokenizer, text: str, vocab: int, longest: int | None = LONGEST) -> list[int]:
    """The tokens of a text with the begin token. InputError for none, too many, or ids outside the vocabulary."""
    ids = ([] if tokenizer.begin is None else [tokenizer.begin]) + list(tokenizer.encode(text))
    if not ids:
        raise InputError("there is no text to analyse", 'give some: --text "def fib(n):" or --file FILE')
    if longest is not None and len(ids) > longest:
        raise InputError(f"the text has {len(ids):,} tokens", f"at most {longest:,} can be analysed: give a part of it")
    if foreign := [token for token in ids if token >= vocab]:
        raise InputError(
            f"the tokenizer gave token {foreign[0]}, and the model knows {vocab}",
            "the checkpoint's tokenizer.json is not the one it was trained with",
        )
    return ids


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token for display; bytes that are not UTF-8 are shown in hexadecimal."""
    if token == tokenizer.end:
        return "⟨end⟩"
    piece = tokenizer.pieces[token] if token < len(tokenizer.pieces) else b""
    if not piece:
        return f"⟨{token}⟩"
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(b) if b < 128 else f"⟨{b:02x}⟩" for b in piece)


def groups(what: Sequence[str]) -> frozenset[str]:
    """The requested groups, by default all. InputError for an unknown group."""
    names = [name.strip() for entry in what for name in entry.split(",") if name.strip()]
    for name in names:
        if name not in GROUPS:
            raise unknown("group of figures", name, GROUPS)
    return frozenset(names or GROUPS)


def block_range(text: str | None, count: int) -> frozenset[int]:
    """The blocks in a range such as `0-3,6`; all for None. InputError for blocks that do not exist."""
    if text is None:
        return frozenset(range(count))
    blocks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.strip().isdigit() for end in ends):
            raise InputError(
                f"--layers {text}: '{part.strip()}' is not a block or range of blocks", "such as 0-3 or 0,5"
            )
        low, high = (int(end) for end in ends)
        if low > high or high >= count:
            raise InputError(f"--layers {text}: the model has blocks 0 to {count - 1}", "such as 0-3 or 0,5")
        blocks.update(range(low, high + 1))
    return frozenset(blocks)


def _is_selected(path: str, blocks: frozenset[int]) -> bool:
    first, _, rest = path.partition(".")
    return first != "blocks" or int(rest.partition(".")[0]) in blocks


def facts(model: Model, observed: Observation) -> dict[str, Any]:
    """The model's sizes, its active parameters, and the size of its state after this text."""
    total, active = model.parameter_count(), model.active_parameter_count()
    return {
        "parameters": total,
        "active_parameters": active,
        "sparsity": 1 - active / total,
        "blocks": model.spec.blocks,
        "width": model.spec.width,
        "learners": [spec.type for spec in model.spec.learners],  # type: ignore[attr-defined]
        "state_bytes": model.state_bytes(len(observed.tokens)),
        "tokens": len(observed.tokens),
    }


def lines(report: Report) -> Iterator[dict[str, Any]]:
    """The report as plain values, one for each JSON line."""
    yield {"event": "model", "name": report.name, **report.facts, "bits_per_token": plain(report.bits)}
    predictions = report.predictions
    for i, piece in enumerate(report.pieces):
        yield {
            "event": "token",
            "index": i,
            "id": report.ids[i],
            "text": piece,
            "bits": plain(predictions.bits[i]),
            "rank": int(predictions.rank[i]),
            "entropy": plain(predictions.entropy[i]),
            "next": [[text, plain(p)] for text, p in zip(report.likeliest[i], predictions.probability[i], strict=True)],
        }
    for each in report.series:
        at = None if each.at is None else each.at.tolist()
        head = {"path": each.path, "learner": each.learner, "name": each.name, "group": each.group}
        rows = [[int(x) for x in row] for row in each.rows] if each.whole else plain(each.rows)
        yield {"event": "series", **head, "meaning": each.meaning, "at": at, "rows": rows}
    for figure in report.figures:
        head = {"path": figure.path, "learner": figure.learner, "name": figure.name, "group": figure.group}
        yield {"event": "figure", **head, "meaning": figure.meaning, "values": plain(figure.values)}
    for reads in report.reads:
        values = {"at": None if reads.at is None else reads.at.tolist(), "error": plain(reads.error)}
        sources = {"sources": reads.sources.tolist(), "shares": plain(reads.shares)}
        yield {
            "event": "reads",
            "path": reads.path,
            "learner": reads.learner,
            "operator": reads.op,
            **values,
            **sources,
        }
    for one in report.fates:
        yield {"event": "fate", **{key: plain(value) for key, value in one._asdict().items()}}


def plain(value: Any) -> Any:
    """Numbers to seven digits, arrays as lists, and values that JSON does not have as null."""
    if isinstance(value, np.ndarray):
        return rounded_digits(value).tolist() if np.isfinite(value).all() else plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def rounded_digits(numbers: np.ndarray) -> np.ndarray:
    """Rounded to seven significant digits; integers unchanged."""
    if numbers.dtype.kind in "iub":
        return numbers
    wide = numbers.astype(np.float64)
    scale = 10.0 ** (6 - np.floor(np.log10(np.where(wide == 0, 1.0, np.abs(wide)))))
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.round(wide * scale) / scale
    return np.where(np.isfinite(rounded), rounded, wide)
