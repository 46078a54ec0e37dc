"""The model card of a merge: its parents, method and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from synthe_core.merging.config import MergeSpec
from synthe_core.merging.method import Method


def summary(spec: MergeSpec) -> str:
    """One line: the method and the models."""
    return f"{spec.merge_method} merge of {', '.join(each.model for each in spec.inputs)}"


def card(name: str, spec: MergeSpec, method: Method, parents: Sequence[dict[str, Any]], adapter: bool = False) -> str:
    """README.md, with the front matter that the hub reads."""
    front: dict[str, Any] = {"tags": ["merge", "synthe"], "base_model": [parent["model"] for parent in parents]}
    if adapter:
        front["library_name"] = "peft"
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    lines += [f"A merge by `synthe merge`, with the method `{method.name}`: {method.summary}", ""]
    lines += [f"Method: {method.paper}.", "", "| parent | file | SHA-256 |", "|---|---|---|"]
    for parent in parents:
        for owner in (parent, parent.get("base") or {}):
            for file, digest in owner.get("files", {}).items():
                lines.append(f"| {owner['model']} | {file} | {digest['sha256'] if digest else 'not computed'} |")
    lines += ["", "`synthe merge run merge.yaml` repeats it:", "", "```yaml", spec.to_yaml().strip(), "```", ""]
    return "\n".join(lines)
