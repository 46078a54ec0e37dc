"""Parameters as in mergekit's YAML: a number, a gradient over the layers, or values by filter.

density: 0.5                                     # for every tensor
density: [0.2, 0.5, 1.0]                         # from the first layer to the last, interpolated linearly
density: [{filter: mlp, value: 0.5}, {value: 1}] # the first whose filter is part of the tensor's name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthe_core.errors import InputError
from synthe_core.merging.method import Method, Parameter

IGNORED = {"int8_mask": "masks take one byte an entry in any case"}
"""Keys of mergekit that do not change results, and why they are not needed."""


def values(
    method: Method,
    shared: Sequence[Mapping[str, Any]],
    own: Sequence[Sequence[Mapping[str, Any]]],
    name: str,
    depth: float,
) -> dict[str, Any]:
    """The parameters for one tensor.

    shared: mappings with values for all models; the first that has a parameter counts. own: the same for each model,
    for parameters of which every model has its own value. depth: of the tensor, from 0, the first layer, to 1, the
    last.
    """
    chosen: dict[str, Any] = {}
    for parameter in method.parameters.values():
        if parameter.each:
            chosen[parameter.name] = tuple(_value(parameter, settings, name, depth) for settings in own)
        else:
            chosen[parameter.name] = _value(parameter, shared, name, depth)
    return chosen


def check(method: Method, parameters: Mapping[str, Any], prefix: str) -> None:
    """InputError for a parameter that the method does not have, or a value that it cannot take."""
    for name, value in parameters.items():
        if name in IGNORED:
            continue
        parameter = method.parameter(name)
        for point in _points(parameter, value, prefix):
            parameter.check(point, prefix)


def _value(parameter: Parameter, settings: Sequence[Mapping[str, Any]], name: str, depth: float) -> Any:
    for mapping in settings:
        if parameter.name in mapping:
            value = _resolve(mapping[parameter.name], name, depth)
            if value is not None:
                return parameter.check(value)
    if parameter.required:
        raise InputError(f"{parameter.name} is not given", f"{parameter.name}: {parameter.description}")
    return parameter.default


def _resolve(setting: Any, name: str, depth: float) -> Any:
    """The value of a setting for a tensor; None if no filter matches."""
    if not isinstance(setting, list):
        return setting
    if setting and isinstance(setting[0], Mapping):
        for entry in setting:
            part = entry.get("filter")
            if part in (None, "*") or str(part) in name:
                return _resolve(entry["value"], name, depth)
        return None
    if not all(isinstance(point, int | float) and not isinstance(point, bool) for point in setting):
        return setting[min(len(setting) - 1, int(depth * len(setting)))]
    position = depth * (len(setting) - 1)
    left = min(int(position), len(setting) - 1)
    right = min(left + 1, len(setting) - 1)
    return setting[left] + (setting[right] - setting[left]) * (position - left)


def _points(parameter: Parameter, setting: Any, prefix: str) -> list[Any]:
    """Every single value of a setting."""
    if not isinstance(setting, list):
        return [setting]
    if not setting:
        raise InputError(
            f"{prefix}{parameter.name} is an empty list", "give a number, or numbers from first layer to last"
        )
    if not any(isinstance(entry, Mapping) for entry in setting):
        return setting
    points = []
    for entry in setting:
        if not isinstance(entry, Mapping) or "value" not in entry or entry.keys() - {"filter", "value"}:
            raise InputError(
                f"{prefix}{parameter.name}: {entry!r} is not a filter with a value",
                "write {filter: mlp, value: 0.5}, or {value: 0.5}",
            )
        points += _points(parameter, entry["value"], prefix)
    return points
