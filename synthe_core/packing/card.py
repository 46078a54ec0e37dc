"""README.md: the model card, made from the manifest, so that it says nothing that was not measured."""

from __future__ import annotations

import yaml

from synthe_core.packing.manifest import PackManifest


def card(about: PackManifest, classifies: bool) -> str:
    """A card as the hub reads it: YAML about the model, then text."""
    head: dict[str, object] = {
        "library_name": "synthe",
        "tags": ["synthe", "synapse", *about.capabilities],
        "pipeline_tag": "text-classification" if classifies else "text-generation",
    }
    if about.licence:
        head["license"] = about.licence
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {about.name}", ""]
    if about.description:
        lines += [about.description, ""]
    verb = "eval --help" if classifies else f"generate {about.name}.synapse --prompt ..."
    lines += ["A `.synapse` file: `synthe " + verb + "` takes it as it is.", "", "| | |", "|---|---|"]
    base = about.base
    lines.append(f"| parameters | {base.parameters:,} |")
    if base.quantization is not None:
        q = base.quantization
        lines.append(f"| quantised | {q.kind}, a scale for every {q.group} numbers of {q.matrices} matrices |")
        if q.loss is not None:
            cost = f"{q.loss.before:.4f} -> {q.loss.after:.4f} bits per byte ({q.loss.after - q.loss.before:+.4f})"
            lines.append(f"| what that costs | {cost} on {q.loss.tokens:,} tokens of {q.loss.text} |")
    if not base.carried:
        lines.append(f"| weights | not in this file: those of {base.model} |")
    lines += [f"| {score.name} | {score.value:.6g} ({score.how}) |" for score in about.scores]
    if about.training.steps:
        lines.append(f"| trained | {about.training.steps:,} steps, {about.training.tokens:,} tokens |")
    for adapter in about.adapters:
        rank = f"rank {adapter.rank}, " if adapter.rank else ""
        lines.append(f"| adapter {adapter.name} | {rank}{adapter.parameters:,} parameters |")
    lines += [f"| specialist | {name} |" for name in about.specialists]
    lines += [f"| licence | {about.licence} |"] if about.licence else []
    return "\n".join(lines) + "\n"
