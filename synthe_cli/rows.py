"""Rows of a result as a table, or as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from synthe_cli import figures
from synthe_cli.escape import json_text


def print_rows(
    event: str,
    values: Sequence[dict[str, Any]],
    heads: list[str],
    rows: list[list[str]],
    as_json: bool,
    *,
    none: str,
) -> None:
    """Prints a table, or with --json a line of `values` for each row. none: what is said on stderr where there are no
    rows."""
    if as_json:
        for each in values:
            print(json_text({"event": event, **each}))
    elif rows:
        print(figures.table(heads, rows, left=len(heads)))
    else:
        print(none, file=sys.stderr)
