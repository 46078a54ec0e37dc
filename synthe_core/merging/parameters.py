"""Parameters as mergekit's YAML writes them: a number for all, a gradient over the layers, or values by filter.

density: 0.5                                     # for every tensor
density: [0.2, 0.5, 1.0]                         # from the first layer to the last, straight between the points
density: [{filter: mlp, value: 0.5}, {value: 1}] # the first whose filter is part of the tensor's name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthe_core.errors import InputError
from synthe_core.merging.method import Method, Parameter

IGNORED = {"int8_mask": "masks take one byte an entry here anyway"}
"""Keys of mergekit's that change no result, and why nothing is lost."""


def values(
    method: Method,
    shared: Sequence[Mapping[str, Any]],
    own: Sequence[Sequence[Mapping[str, Any]]],
    name: str,
    at: float,
) -> dict[str, Any]:
    """The parameters for one tensor.

    shared: where a value for all models is looked up, the first that has it. own: the same for each model, for what
    every model has a value of its own. at: how deep the tensor lies, from 0, the first layer, to 1, the last.
    """
    found: dict[str, Any] = {}
    for parameter in method.parameters.values():
        if parameter.each:
            found[parameter.name] = tuple(_value(parameter, places, name, at) for places in own)
        else:
            found[parameter.name] = _value(parameter, shared, name, at)
    return found


def check(method: Method, given: Mapping[str, Any], place: str) -> None:
    """InputError for a parameter that the method does not have, or a value that it cannot take."""
    for name, value in given.items():
        if name in IGNORED:
            continue
        parameter = method.parameter(name)
        for point in _points(parameter, value, place):
            parameter.check(point, place)


def _value(parameter: Parameter, places: Sequence[Mapping[str, Any]], name: str, at: float) -> Any:
    for place in places:
        if parameter.name in place:
            found = _resolve(place[parameter.name], name, at)
            if found is not None:
                return parameter.check(found)
    if parameter.required:
        raise InputError(f"{parameter.name} is not given", f"{parameter.name}: {parameter.description}")
    return parameter.default


def _resolve(setting: Any, name: str, at: float) -> Any:
    """A setting's value for a tensor; None where no filter fits."""
    if not isinstance(setting, list):
        return setting
    if setting and isinstance(setting[0], Mapping):
        for entry in setting:
            part = entry.get("filter")
            if part in (None, "*") or str(part) in name:
                return _resolve(entry["value"], name, at)
        return None
    if not all(isinstance(point, int | float) and not isinstance(point, bool) for point in setting):
        return setting[min(len(setting) - 1, int(at * len(setting)))]
    place = at * (len(setting) - 1)
    left = min(int(place), len(setting) - 1)
    right = min(left + 1, len(setting) - 1)
    return setting[left] + (setting[right] - setting[left]) * (place - left)


def _points(parameter: Parameter, setting: Any, place: str) -> list[Any]:
    """Every single value of a setting."""
    if not isinstance(setting, list):
        return [setting]
    if not setting:
        raise InputError(
            f"{place}{parameter.name} is an empty list", "give a number, or numbers from first layer to last"
        )
    if not any(isinstance(entry, Mapping) for entry in setting):
        return setting
    found = []
    for entry in setting:
        if not isinstance(entry, Mapping) or "value" not in entry or entry.keys() - {"filter", "value"}:
            raise InputError(
                f"{place}{parameter.name}: {entry!r} is not understood",
                "write {filter: mlp, value: 0.5}, or {value: 0.5}",
            )
        found += _points(parameter, entry["value"], place)
    return found
