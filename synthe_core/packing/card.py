"""README.md: the model card, generated from the manifest."""

from __future__ import annotations

from collections.abc import Collection

import yaml

from synthe_core.packing.manifest import PackManifest
from synthe_core.packing.members import SPECIALIST


def card(manifest: PackManifest, classifies: bool, files: Collection[str] = ()) -> str:
    """The card in the hub's format: YAML metadata, then text. files: the file's members."""
    head: dict[str, object] = {
        "library_name": "synthe",
        "tags": ["synthe", "synapse", *manifest.capabilities],
        "pipeline_tag": "text-classification" if classifies else "text-generation",
    }
    if manifest.licence:
        head["license"] = manifest.licence
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {manifest.name}",
        "",
    ]
    if manifest.description:
        lines += [manifest.description, ""]
    verb = "eval --help" if classifies else f"generate {manifest.name}.synapse --prompt ..."
    use = f"A `.synapse` file: `synthe {verb}` reads it directly."
    if SPECIALIST in files:
        use = f"A specialist of a swarm: `synthe swarm install TEAM {manifest.name}.synapse` adds it."
    lines += [use, "", "| | |", "|---|---|"]
    base = manifest.base
    lines += [f"| parameters | {base.parameters:,} |"] if base.parameters else []
    if base.quantization is not None:
        q = base.quantization
        lines.append(f"| quantised | {q.kind}, a scale for every {q.group} numbers of {q.matrices} matrices |")
        if q.loss is not None:
            cost = f"{q.loss.before:.4f} -> {q.loss.after:.4f} bits per byte ({q.loss.after - q.loss.before:+.4f})"
            lines.append(f"| loss from quantisation | {cost} on {q.loss.tokens:,} tokens of {q.loss.text} |")
    if not base.carried:
        lines.append(f"| weights | not in this file: those of {base.model} |")
    lines += [f"| {score.name} | {score.value:.6g} ({score.how}) |" for score in manifest.scores]
    if manifest.training.steps:
        lines.append(f"| trained | {manifest.training.steps:,} steps, {manifest.training.tokens:,} tokens |")
    for adapter in manifest.adapters:
        rank = f"rank {adapter.rank}, " if adapter.rank else ""
        lines.append(f"| adapter {adapter.name} | {rank}{adapter.parameters:,} parameters |")
    lines += [f"| specialist | {name} |" for name in manifest.specialists]
    lines += [f"| licence | {manifest.licence} |"] if manifest.licence else []
    return "\n".join(lines) + "\n"
