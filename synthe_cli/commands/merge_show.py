"""The text output of `synthe merge`: methods, differences and evaluations."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from synthe_cli import figures
from synthe_cli.escape import escaped

SHOWN = 20


def methods() -> list[dict[str, Any]]:
    """Every method of the table as plain values."""
    from synthe_core.merging.method import Method
    from synthe_core.merging.methods import METHODS

    listed = []
    for name in METHODS:
        method = Method(name)
        keys = [
            {
                "name": each.name,
                "default": None if each.required else each.default,
                "each": each.each,
                "about": each.description,
            }
            for each in method.parameters.values()
        ]
        base = "needed" if method.needs_base else "optional" if method.takes_base else "none"
        listed.append(
            {
                "name": name,
                "about": method.summary,
                "models": str(method.count),
                "base": base,
                "parameters": keys,
                "paper": method.paper,
            }
        )
    return listed


def parameters(name: str) -> str:
    """A method as text: its description, inputs, parameters and paper."""
    method = next(each for each in methods() if each["name"] == name)
    base = {"needed": " and a base", "optional": ", and a base if one is given", "none": ""}[method["base"]]
    lines = [f"{name}: {method['about']}", f"  takes {method['models']}{base}"]
    for each in method["parameters"]:
        default = "required" if each["default"] is None else f"{each['default']}"
        default = default.lower() if isinstance(each["default"], bool) else default
        kind = ", one value, or one per model" if each["each"] else ""
        option = f"--{each['name'].replace('_', '-')}"
        lines.append(f"  {option:<19} {each['about']} ({default}{kind})")
    return "\n".join([*lines, *textwrap.wrap(method["paper"], 110, initial_indent="  ", subsequent_indent="  ")])


def differences(values: dict[str, Any], every: bool, based: bool) -> str:
    """A row for each tensor and one for the total. Without `every`, those that differ most first."""
    total, tensors = values["total"], values["tensors"]
    rows = tensors if every else sorted(tensors, key=lambda each: -(each["relative"] or 0))[:SHOWN]
    table = [_row(each) for each in [*rows, total]]
    same = sum(each["distance"] == 0 for each in tensors)
    about = "differences from the base" if based else "weights"
    title = f"{len(tensors)} tensors, {same} of them equal; cosine and signs are of the {about}"
    left_out = len(tensors) - len(rows)
    lines = [
        title,
        "",
        figures.table(["tensor", "shape", "distance", "relative", "cosine", "same sign"], table, left=2),
    ]
    if left_out:
        lines.append(f"\n{left_out} tensors that differ less are not shown: use --all")
    if values["only"]:
        lines.append(
            f"\nnot compared (missing in one model, or of different shape): {escaped(', '.join(values['only']))}"
        )
    return "\n".join(lines)


def _row(each: dict[str, Any]) -> list[str]:
    def form(value: float | None, text: str) -> str:
        return "-" if value is None else text.format(value)

    return [
        each["name"],
        " x ".join(map(str, each["shape"])),
        f"{each['distance']:.4g}",
        form(each["relative"], "{:.3g}"),
        form(each["cosine"], "{:.4f}"),
        form(each["signs"], "{:.1%}"),
    ]


def evaluation(values: dict[str, Any]) -> str:
    """Bits per byte: a row for each model, a column for each text."""
    scores = values["bits_per_byte"]
    texts = list(next(iter(scores.values())))
    texts = texts if len(texts) > 2 else texts[:1]  # the mean of one text is the text itself
    rows = [[name, *(f"{each[text]:.3f}" for text in texts)] for name, each in scores.items()]
    return figures.table(["bits per byte", *(Path(text).name for text in texts)], rows)
