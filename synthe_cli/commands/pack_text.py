"""The text output of `synthe pack inspect` and `synthe pack diff`."""

from __future__ import annotations

from typing import Any

from synthe_cli import figures
from synthe_cli.escape import escaped
from synthe_core.units import format_count, format_size

SHOWN = 12  # tensors of a comparison


def overview(values: dict[str, Any]) -> str:
    """A file's manifest as text."""
    if "base_model" in values:
        return _titan(values)
    base, training = values["base"], values["training"]
    rows = [("description", values["description"])]
    external = "" if base["carried"] else f"{base['model']}, weights not included"
    rows.append(("model", ", ".join(filter(None, [_parameters(base["parameters"]), external]))))
    if quantization := base["quantization"]:
        before, after = (format_size(quantization[f"bytes_{when}"]) for when in ("before", "after"))
        rows.append(("quantised", f"{quantization['kind']}, groups of {quantization['group']}: {before} -> {after}"))
        if loss := quantization["loss"]:
            cost = f"{loss['before']:.4f} -> {loss['after']:.4f} bits per byte ({loss['after'] - loss['before']:+.4f})"
            rows.append(("its loss", f"{cost} on {loss['tokens']:,} tokens of {loss['text']}"))
    memory = values["memory"]
    states = ", ".join(f"{format_size(size)} after {tokens}" for tokens, size in memory["state"].items())
    rows.append(("memory", f"{format_size(memory['weights'])} of weights" + (f"; state {states}" if states else "")))
    rows += [(score["name"].replace("_", " "), f"{score['value']:.4f}, {score['how']}") for score in values["scores"]]
    if training["steps"]:
        took = figures.duration(training["seconds"])
        rows.append(("trained", f"{training['steps']:,} steps, {format_count(training['tokens'])} tokens, {took}"))
    for adapter in values["adapters"]:
        rank = f"rank {adapter['rank']}, " if adapter["rank"] else ""
        unchecked = "" if adapter["checked"] else ", not checked against its base"
        rows.append(("adapter", f"{adapter['name']}: {rank}{_parameters(adapter['parameters'])}{unchecked}"))
    rows += [("specialist", name) for name in values["specialists"]]
    rows += [("session", name) for name in values["sessions"]]
    rows += _knowledge(values)
    rows.append(("capabilities", ", ".join(values["capabilities"])))
    rows.append(("parents", ", ".join(values["parents"])))
    rows.append(("licence", values["licence"] or ""))
    rows.append(("signed by", values["signed_by"] or "unsigned"))
    title = f"{values['name']}  (.synapse {values['version']}, by {values['created_by']})"
    files = [[name, format_size(facts["bytes"]), facts["sha256"][:16]] for name, facts in values["files"].items()]
    return _text(title, rows) + "\n\n" + figures.table(["member", "size", "sha256"], files)


def _parameters(count: int) -> str:
    return f"{count:,} parameters" if count else ""


def _titan(values: dict[str, Any]) -> str:
    rows = [("base model", f"{values['base_model']} {values['base_quantization']}".strip())]
    rows += [("file", f"{name}, {format_size(size)}") for name, size in values["models"].items()]
    rows += [("adapter", f"{name}: {count} tensors") for name, count in values["adapters"].items()]
    rows += _knowledge(values)
    rows.append(("capabilities", ", ".join(values["capabilities"])))
    rows.append(("training pairs", str(values["training_pairs_collected"])))
    rows.append(("last trained", values["last_trained"] or ""))
    return _text(f"{values['name']}  (titan-synapse {values['version']}: no digests)", rows)


def _knowledge(values: dict[str, Any]) -> list[tuple[str, str]]:
    if values["knowledge"] is None:
        return []
    return [("knowledge", ", ".join(f"{rows:,} {table}" for table, rows in values["knowledge"].items()) or "no tables")]


def _text(title: str, rows: list[tuple[str, str]]) -> str:
    rows = [(escaped(label), text) for label, text in rows if text]
    width = max(len(label) for label, _ in rows)
    return "\n".join([escaped(title), "", *(f"{label:<{width}}  {escaped(text)}" for label, text in rows)])


def differences(values: dict[str, Any]) -> str:
    """The differences of two models as text."""
    if values["same"]:
        return "no difference"
    lines = [*(f"manifest  {line}" for line in values["manifest"]), *(f"recipe    {line}" for line in values["recipe"])]
    lines += [f"member    {name}: {where}" for where, names in values["members"].items() for name in names]
    lines += [f"tensor    {name}: {where}" for where, names in values["tensors_absent"].items() for name in names]
    lines = [escaped(line) for line in lines]
    tensors = values["tensors"]
    if tensors:
        rows = [[each["name"], *_change(each)] for each in tensors[:SHOWN]]
        more = f"\nand {len(tensors) - SHOWN} more; --json lists all" if len(tensors) > SHOWN else ""
        lines += ["", figures.table(["tensor", "largest change", "relative"], rows) + more]
    return "\n".join(lines)


def _change(each: dict[str, Any]) -> tuple[str, str]:
    if "shapes" in each:
        return " -> ".join(map(str, each["shapes"])), "-"
    return f"{each['largest']:.3g}", f"{each['relative']:.2%}"
