"""The report of finished trials: reads their records; writes an HTML page, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthe_core.benchmarks.synthetic.recall_chart import recall_by_state
from synthe_core.benchmarks.synthetic.report_html import page
from synthe_core.benchmarks.synthetic.summary import (
    COST_COLUMNS,
    Bench,
    Record,
    Summary,
    benches,
    best,
    chance_text,
    cost_cells,
    overview_text,
    score_cells,
    score_columns,
    stop_note,
    summaries,
)
from synthe_core.charts.svg import svg
from synthe_core.errors import InputError
from synthe_core.storage.atomic import failure, write_file

__all__ = ["COLUMNS", "Summary", "best", "csv_text", "load", "read", "rows", "summaries", "write"]

COLUMNS = [
    *("task", "preset", "settings", "label", "model", "width", "lr", "batch", "epochs", "weight_decay", "optimizer"),
    *("seed", "axis", "value", "share", "accuracy", "total_accuracy", "chance", "ended", "steps", "tokens", "seconds"),
    *("parameters", "state_bytes", "device", "hardware", "kernels", "torch", "version", "digest"),
]
"""Of the CSV: `accuracy` is the share's, `total_accuracy` the trial's; settings, model, share and kernels are JSON."""

WIDE = {"settings", "model", "kernels"}


def load(folders: Iterable[Path]) -> list[Record]:
    """The records under `folders`, each with `finished`, when its file was written. A trial with two files counts once.

    InputError if a folder is missing, a file is not the record of a trial, or there is no record.
    """
    paths: list[Path] = []
    folders = list(folders)
    for folder in folders:
        if not folder.exists():
            raise InputError(f"no such folder: '{folder}'", "synthe bench TASK stores its trials in runs/bench/TASK")
        files = sorted(folder.rglob("trial-*.json")) if folder.is_dir() else [folder]
        paths += [path for path in files if path.match("trial-*.json")]
    if not paths:
        where = ", ".join(f"'{folder}'" for folder in folders)
        raise InputError(f"no finished trials in {where}", "synthe bench TASK stores them in runs/bench/TASK")
    stamped = sorted((read(path) for path in paths), key=lambda record: str(record["finished"]))
    newest = {(record["digest"], record["trial"]["label"]): record for record in stamped}
    return sorted(newest.values(), key=_sort_key)


def _sort_key(record: Record) -> tuple[Any, ...]:
    trial = record["trial"]
    return trial["task"], trial["label"], trial["model"]["width"], trial["lr"], trial["seed"], record["digest"]


def read(path: Path) -> Record:
    """The record in a file; InputError if anything that a report needs is missing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        finished = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        record = {**record, "finished": finished}
        page([record], benches(summaries([record])))  # a KeyError for what is missing
        rows([record])
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON (line {error.lineno})", "remove it, and run its sweep again") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path} is not the record of a trial", "remove it, and run its sweep again") from None
    return record


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A flat dict for each trial and share, with the keys of COLUMNS."""
    lines = []
    for record in records:
        trial = record["trial"]
        common = {**record, **trial, "width": trial["model"]["width"], "total_accuracy": record["accuracy"]}
        common |= {key: json.dumps(common[key], sort_keys=True) for key in WIDE}
        for share in record["shares"]:
            settings = share["settings"]
            own = {"value": settings[record["axis"]], "share": json.dumps(settings), "accuracy": share["accuracy"]}
            lines.append({key: (common | own)[key] for key in COLUMNS})
    return lines


def csv_text(records: Iterable[Record]) -> str:
    """`rows` as CSV with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(records))
    return text.getvalue()


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """report.html, report.csv and report.md in `folder`, and of recall tasks recall-by-state.svg: the paths, the page
    first."""
    if not records:
        raise InputError("there are no finished trials to report")
    tables = benches(summaries(records))
    texts = {
        "report.html": page(records, tables),
        "report.csv": csv_text(records),
        "report.md": markdown(records, tables),
    }
    if (chart := recall_by_state(tables)) is not None:
        texts["recall-by-state.svg"] = svg([chart])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(folder, error) from error
    for name, text in texts.items():
        write_file(folder / name, text)
    return [folder / name for name in texts]


def markdown(records: Sequence[Record], tables: list[Bench]) -> str:
    """The tables of the page, for a README or an issue."""
    parts = [stop_note(records)]
    if len(tables) > 1:
        columns, lines = overview_text(tables)
        parts += ["## Overview", _table(["best accuracy", *columns[1:]], lines)]
    for bench in tables:
        parts += [
            f"## {_plain(bench.title)}",
            f"Chance is {chance_text(bench.chance)}.",
            _table(
                score_columns(bench) + COST_COLUMNS, [score_cells(bench, row) + cost_cells(row) for row in bench.rows]
            ),
        ]
    versions = sorted({f"synthe {record['version']}, torch {record['torch']}" for record in records})
    machines = sorted({f"{record['hardware']} ({record['device']})" for record in records})
    count = f"{len(records)} {'trial' if len(records) == 1 else 'trials'}"
    parts.append(_plain(f"{count}; {'; '.join(versions)}; {'; '.join(machines)}."))
    return "\n\n".join(parts) + "\n"


def _table(columns: list[str], lines: list[list[str]]) -> str:
    marks = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in [columns, marks, *lines])


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
