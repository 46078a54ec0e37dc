"""Emissions of learners as rows of numbers over the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from synthe_core.introspection.observe import Observation, module_at
from synthe_core.layers.trace import Emission, Group, Record, declared
from synthe_core.model.block import Block

INTEGERS = (torch.int64, torch.int32, torch.bool)


class Series(NamedTuple):
    """A figure over the text: `rows` float32 [R, N], one row a head, expert or choice, at the tokens `at` [N].

    `at` is None if there is one for each token. whole: the numbers are choices or counts, not measures.
    """

    path: str
    learner: str
    name: str
    group: Group
    meaning: str
    rows: np.ndarray
    at: np.ndarray | None
    whole: bool = False


class Figure(NamedTuple):
    """A figure of the whole text: a number, or one for each expert, slot or lag."""

    path: str
    learner: str
    name: str
    group: Group
    meaning: str
    values: Any


def collect(model: nn.Module, observed: Observation) -> tuple[list[Series], list[Figure]]:
    """Every emission of the first row, in order; chunks of the text are concatenated."""
    by_name: dict[tuple[str, str], list[Record]] = {}
    for record in observed.records:
        by_name.setdefault((record.path, record.name), []).append(record)
    series: list[Series] = []
    figures: list[Figure] = []
    for (path, name), records in by_name.items():
        module = module_at(model, path)
        emission = meaning_of(module, name)
        learner = name_of(module)
        if emission is None:  # of a plugin
            emission = _undeclared(records[0])
        if "T" not in emission.axes.split():
            figures.append(Figure(path, learner, name, emission.group, emission.meaning, _fixed(records[-1], emission)))
            continue
        records = [record for record in records if record.value.numel()]
        if not records:  # a slow tier without output yet
            continue
        rows = [rows_of(record.value, emission) for record in records]
        at = None if records[0].at is None else torch.cat([r.at[0] for r in records if r.at is not None]).cpu().numpy()
        joined = np.concatenate(rows, 1)
        if at is not None and len(at) == len(observed.tokens) and (np.diff(at) == 1).all():
            at = None
        whole = records[0].value.dtype in INTEGERS
        series.append(Series(path, learner, name, emission.group, emission.meaning, joined, at, whole))
    return series, figures


def meaning_of(module: nn.Module, name: str) -> Emission | None:
    """The declaration of what `module` emits under that name, or of what blocks emit for every learner."""
    own: Mapping[str, Emission] = getattr(module, "emits", {})
    return declared(name, own) or declared(name, Block.emits)


def name_of(module: nn.Module) -> str:
    """The type of a learner, such as `delta`, or else the class's name in lower case."""
    config = getattr(module, "config", None) or getattr(getattr(module, "rule", None), "config", None)
    return str(getattr(config, "type", type(module).__name__.lower()))


def _undeclared(record: Record) -> Emission:
    """An emission that no learner declared, described by its shape."""
    axes = {2: "B T", 3: "B T H", 4: "B T H E"}.get(record.value.dim(), "")
    return Emission(axes, "memory", "not declared by its learner")


def rows_of(value: Tensor, emission: Emission) -> np.ndarray:
    """[R, N] of the first batch row."""
    axes = emission.axes.split()
    one = value.select(axes.index("B"), 0)
    axes.remove("B")
    one = one.movedim(axes.index("T"), -1) if axes[-1] != "T" else one
    axes.remove("T")
    one = one.double()
    for letter in ("E", "K") if len(axes) > 1 else ("E",):
        if letter in axes:
            one = _reduce(one, axes.index(letter), emission.summary)
            axes.remove(letter)
    return one.reshape(-1, one.shape[-1]).float().cpu().numpy()


def _reduce(x: Tensor, axis: int, summary: str) -> Tensor:
    if summary == "first":
        return x.select(axis, 0)
    return x.square().mean(axis).sqrt() if summary == "rms" else x.mean(axis)


def _fixed(record: Record, emission: Emission) -> Any:
    axes = emission.axes.split()
    value = record.value
    if "B" in axes:
        value = value.select(axes.index("B"), 0)
        axes.remove("B")
    if axes == ["E", "L"]:
        value = value.double().square().mean(0).sqrt()
    return value.double().cpu().tolist() if emission.axes else float(value)
