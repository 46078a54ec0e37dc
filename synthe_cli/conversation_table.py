"""The counts of conversations, preferences and ratings as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synthe_cli import figures
from synthe_cli.escape import escaped

LENGTHS = ("texts", "prompts", "answers", "chosen", "rejected", "turns")


def conversation_table(values: Mapping[str, Any]) -> str:
    """A part for each source: counts, lengths, and why rows are skipped."""
    return "\n\n".join("\n".join(_source(source, values["unit"])) for source in values["sources"])


def _source(values: Mapping[str, Any], unit: str) -> Iterator[str]:
    yield f"{escaped(values['source'])} ({values['split']})"
    facts = list(_facts(values, unit))
    width = max(len(name) for name, _ in facts)
    yield from (f"  {name:<{width}}  {text}" for name, text in facts)
    heads = [unit, "mean", "median", "95th", "longest"]
    rows = [
        [name, f"{spread['mean']:,.1f}", *(f"{spread[column]:,}" for column in heads[2:])]
        for name in LENGTHS
        if (spread := values["lengths"].get(name))
    ]
    yield ""
    yield from (f"  {line}" for line in figures.table(heads, rows).splitlines())
    if values["reasons"]:
        yield ""
        table = figures.table(
            ["rows", "skipped because", "the first"],
            [[f"{each['rows']:,}", each["reason"], each["first"]] for each in values["reasons"]],
            left=3,
        )
        yield from (f"  {line}" for line in table.splitlines())


def _facts(values: Mapping[str, Any], unit: str) -> Iterator[tuple[str, str]]:
    used = values["used"]
    yield "rows", f"{values['rows']:,}, of which {values['skipped']:,} are skipped"
    yield "kinds", _counts(values["kinds"])
    yield "layouts", _counts(values["layouts"])
    yield "roles", _counts(values["roles"])
    if values["rows_with_tools"] or values["tool_calls"]:
        yield "tools", f"in {values['rows_with_tools']:,} rows; {values['tool_calls']:,} calls"
    if "good" in values:
        yield "good answers", f"{values['good']:,} of {values['kinds']['ratings']:,}"
    yield "trained on", f"{values['trained_share']:.1%} of {unit}"
    for limit, count in values.get("fit", {}).items():
        yield f"fit {int(limit):,} tokens", f"{count:,} rows, {count / used:.1%}"
    if "chosen_longer" in values:
        yield "chosen is longer", f"in {values['chosen_longer']:.1%} of the pairs"
    yield "duplicates", f"{values['duplicates']:,} rows; {values['repeated_prompts']:,} with the prompt of another row"
    if "in_both_splits" in values and values["split"] == "train":
        yield "also held out", f"the prompts of {values['in_both_splits']:,} rows"


def _counts(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{escaped(name)} {count:,}" for name, count in counts.items())
