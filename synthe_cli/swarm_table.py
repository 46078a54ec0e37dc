"""The state of a swarm as text."""

from __future__ import annotations

from typing import Any

from synthe_cli import figures


def status_text(values: dict[str, Any]) -> str:
    """What `synthe swarm status` prints."""
    lines = [f"base {values['base']}"]
    if not values["specialists"]:
        return "\n".join([*lines, "no specialists yet: synthe swarm add SWARM NAME --capabilities ... --prompt ..."])
    rows = [[each["name"], ", ".join(each["capabilities"]) or "-", _parts(each)] for each in values["specialists"]]
    return "\n".join([*lines, "", figures.table(["specialist", "capabilities", "made of"], rows, left=3)])


def _parts(specialist: dict[str, Any]) -> str:
    parts = []
    if specialist["model"]:
        parts.append(f"model {specialist['model']}")
    if specialist["adapter"]:
        parts.append(f"adapter {specialist.get('digest', '')[:12] or specialist['adapter']}")
    if specialist["prompt"]:
        parts.append("prompt")
    if specialist["documents"]:
        parts.append(f"{len(specialist['documents'])} documents")
    return ", ".join(parts)
