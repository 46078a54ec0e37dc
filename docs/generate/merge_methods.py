"""The table of merge methods, from their signatures and docstrings."""

from __future__ import annotations

import json

from docs.generate.markdown import cell, prose, table
from synthe_core.merging.method import Method
from synthe_core.merging.methods import METHODS


def page() -> str:
    """merge-methods.md: one table of all, then a section with the options of each."""
    methods = [Method(name) for name in METHODS]
    rows = [[f"[`{each.name}`](#{each.name})", _inputs(each), cell(each.summary), cell(each.paper)] for each in methods]
    return "\n".join(
        [
            "# Merge methods\n",
            "Every method of `synthe merge METHOD`. Options of the command line are keys of the YAML too, with `_` for "
            "`-`. An option with a value for each model takes one value for all, or a list.\n",
            table(["method", "takes", "what it does", "source"], rows),
            *(_section(each) for each in methods),
        ]
    )


def _inputs(method: Method) -> str:
    base = " and a base" if method.needs_base else ", and a base if one is given" if method.takes_base else ""
    return f"{method.count}{base}"


def _section(method: Method) -> str:
    rows = [
        [
            f"`--{each.name.replace('_', '-')}`",
            "required" if each.required else f"`{json.dumps(each.default)}`",
            "one for each model" if each.each else "one",
            cell(each.description),
        ]
        for each in method.parameters.values()
    ]
    options = table(["option", "default", "values", "meaning"], rows) if rows else "No options of its own.\n"
    return f"## {method.name}\n\n{prose(method.function)}\n{options}"
