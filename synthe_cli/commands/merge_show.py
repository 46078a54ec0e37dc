"""What `synthe merge` prints: methods, differences and evaluations as tables."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from synthe_cli import figures

SHOWN = 20


def methods() -> list[dict[str, Any]]:
    """Every method of the table, as plain values."""
    from synthe_core.merging.method import Method
    from synthe_core.merging.methods import METHODS

    found = []
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
        found.append(
            {
                "name": name,
                "about": method.summary,
                "models": str(method.count),
                "base": base,
                "parameters": keys,
                "paper": method.paper,
            }
        )
    return found


def parameters(name: str) -> str:
    """A method for people: what it does, what it takes, where it is from."""
    found = next(each for each in methods() if each["name"] == name)
    base = {"needed": " and a base", "optional": ", and a base if one is given", "none": ""}[found["base"]]
    lines = [f"{name}: {found['about']}", f"  takes {found['models']}{base}"]
    for each in found["parameters"]:
        default = "needed" if each["default"] is None else f"{each['default']}"
        default = default.lower() if isinstance(each["default"], bool) else default
        kind = ", one for all or for each model" if each["each"] else ""
        option = f"--{each['name'].replace('_', '-')}"
        lines.append(f"  {option:<19} {each['about']} ({default}{kind})")
    return "\n".join([*lines, *textwrap.wrap(found["paper"], 110, initial_indent="  ", subsequent_indent="  ")])


def differences(values: dict[str, Any], every: bool, based: bool) -> str:
    """A line for each tensor, those that differ most first unless all are wanted, and one for all together."""
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
        lines.append(f"\n{left_out} tensors that differ less are left out: --all")
    if values["only"]:
        lines.append(f"\nnot compared, for one model lacks them or their shapes differ: {', '.join(values['only'])}")
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
    """Bits per byte: a line for each model, a column for each text."""
    found = values["bits_per_byte"]
    texts = list(next(iter(found.values())))
    texts = texts if len(texts) > 2 else texts[:1]  # the mean of one says nothing
    rows = [[name, *(f"{each[text]:.3f}" for text in texts)] for name, each in found.items()]
    return figures.table(["bits per byte", *(Path(text).name for text in texts)], rows)
