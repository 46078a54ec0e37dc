"""Summaries of trials made by hand, and the files that are written of them."""

from __future__ import annotations

import csv
import io
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from synthe_core.benchmarks.synthetic import report
from synthe_core.benchmarks.synthetic.report_svg import accuracy_by_axis, accuracy_by_state, style_numbers
from synthe_core.benchmarks.synthetic.summary import benches, chance_text, overview
from synthe_core.errors import InputError
from tests.benchmarks.synthetic.trials import keep, record


def test_mean_and_deviation_are_over_seeds() -> None:
    (result,) = report.summaries([record([0.9, 0.6], seed=0), record([1.0, 0.7], seed=1), record([1.0, 0.5], seed=2)])
    assert (result.task, result.label, result.width, result.seeds) == ("mqar", "delta", 64, 3)
    assert result.mean == pytest.approx((0.75 + 0.85 + 0.75) / 3)
    assert result.std == pytest.approx(0.1 / 3**0.5)  # of 0.75, 0.85, 0.75
    assert [point.value for point in result.by_axis] == [4, 8]
    assert result.by_axis[1].mean == pytest.approx(0.6)
    assert result.by_axis[1].std == pytest.approx(0.1)
    assert [point.value for point in result.slices["overwritten"]] == [0, 1]
    assert result.slices["overwritten"][1].mean == pytest.approx(result.mean / 2)
    assert (result.chance, result.state_bytes, result.parameters) == (0.03125, 164 * 64, 13348)
    assert (result.steps, result.seconds, result.ended) == (101, 12.5, "budget")
    assert result.swept == result.differs == {}


def test_one_seed_has_no_deviation() -> None:
    (result,) = report.summaries([record([0.9, 0.6])])
    assert result.std is None
    assert [point.std for point in result.by_axis] == [None, None]


def test_shares_of_equal_difficulty_are_one_and_do_not_count_as_seeds() -> None:
    one = record([0.9, 0.6])
    one["shares"][1]["settings"]["pairs"] = 4
    (result,) = report.summaries([one])
    ((value, mean, std),) = result.by_axis
    assert (value, mean, std) == (4, pytest.approx(0.75), None)


def test_how_trials_ended() -> None:
    ended = [[record([a, a], seed=i) for i, a in enumerate(pair)] for pair in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.5))]
    assert [report.summaries(records)[0].ended for records in ended] == ["solved", "solved 1/2", "budget"]


def test_best_chooses_and_names_the_setting_by_its_mean_over_seeds() -> None:
    records = [
        *(record([accuracy], lr=1e-3, seed=seed) for seed, accuracy in enumerate([0.7, 0.7])),
        *(record([accuracy], lr=3e-3, seed=seed) for seed, accuracy in enumerate([0.9, 0.4])),  # the best single one
        record([0.2], label="mamba", lr=1e-3),
        record([0.3], label="mamba", lr=3e-3),
    ]
    result = report.best(report.summaries(records))
    assert [(each.label, each.swept["lr"], round(each.mean, 3)) for each in result] == [
        ("delta", 1e-3, 0.7),
        ("mamba", 3e-3, 0.3),
    ]


def test_settings_that_vary_together_are_all_named() -> None:
    records = [record([0.9]), record([0.8], lr=3e-3)]
    records[1]["trial"]["batch"] = 128
    assert [each.swept for each in report.summaries(records)] == [
        {"batch": 64, "lr": 1e-3},
        {"batch": 128, "lr": 3e-3},
    ]


def test_models_of_one_label_are_named_by_the_fewest_keys() -> None:
    records = [record([0.9], width=width, beta_range=beta) for width in (64, 128) for beta in ([0, 1], [0, 2])]
    result = report.best(report.summaries(records))
    assert [each.name for each in result] == [  # and not by heads, which follow from the width
        "delta width=64 beta_range=[0,1]",
        "delta width=64 beta_range=[0,2]",
        "delta width=128 beta_range=[0,1]",
        "delta width=128 beta_range=[0,2]",
    ]
    assert {each.family for each in result} == {"delta beta_range=[0,1]", "delta beta_range=[0,2]"}


def test_other_settings_of_the_task_are_another_table() -> None:
    records = [record([0.9]), record([0.5], settings={"vocab": 128}), record([0.4], label="mamba"), record([1.0], lr=1)]
    result = benches(report.summaries(records))
    assert [bench.title for bench in result] == ["mqar, quick preset", "mqar vocab=128, quick preset"]
    assert [(row.label, row.mean) for row in result[0].rows] == [("delta", 1.0), ("delta", 0.9), ("mamba", 0.4)]
    assert [row.mean for row in result[0].best] == [1.0, 0.4]
    table = overview(result)
    assert table.columns == ["mqar", "mqar vocab=128"]
    assert table.models_as_rows
    assert [(name, [cell and cell.mean for cell in cells]) for name, cells in table.lines] == [
        ("delta", [1.0, 0.5]),
        ("mamba", [0.4, None]),
    ]


def test_csv_has_a_row_for_each_trial_and_share() -> None:
    records = [record([0.9, 0.6], label='a "b", c'), record([0.8, 0.5], seed=1)]
    rows = list(csv.DictReader(io.StringIO(report.csv_text(records))))
    assert len(rows) == 4
    assert list(rows[0]) == report.COLUMNS
    assert all(list(row) == report.COLUMNS for row in report.rows(records))
    assert [(row["label"], row["seed"], row["value"], row["accuracy"]) for row in rows] == [
        ('a "b", c', "0", "4", "0.9"),
        ('a "b", c', "0", "8", "0.6"),
        ("delta", "1", "4", "0.8"),
        ("delta", "1", "8", "0.5"),
    ]
    assert float(rows[0]["total_accuracy"]) == pytest.approx(0.75)
    assert rows[0]["digest"] == records[0]["digest"]


def test_records_of_a_sweep_are_loaded_once(tmp_path: Path) -> None:
    records = [record([0.9, 0.6], seed=seed) for seed in range(3)]
    keep(records, tmp_path / "a" / "mqar")
    newer = {**records[0], "accuracy": 0.8}
    keep([newer], tmp_path / "b")
    old = tmp_path / "a" / "mqar" / f"trial-{newer['digest']}.json"
    os.utime(old, (0, 0))
    (tmp_path / "b" / "notes.json").write_text("not ours")
    result = report.load([tmp_path / "a", tmp_path / "b", tmp_path / "b" / "notes.json"])
    assert sorted((each["trial"]["seed"], each["accuracy"]) for each in result) == [(0, 0.8), (1, 0.75), (2, 0.75)]
    (alone,) = report.load([old])
    assert alone["finished"] == "1970-01-01T00:00:00+00:00"


def test_folders_without_trials(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished trials in"):
        report.load([tmp_path])
    with pytest.raises(InputError, match=r"no such folder: '.*missing'"):
        report.load([tmp_path / "missing"])
    with pytest.raises(InputError, match="no finished trials"):
        report.write([], tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not the record of a trial"),
        ("[" * 100_000, "is not the record of a trial"),
        ("\x00", "is not JSON"),
        ("{}", "is not the record of a trial"),
        ('{"trial": {"task": "mqar"}}', "is not the record of a trial"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    keep([record([0.9])], tmp_path)
    bad = tmp_path / "trial-bad.json"
    bad.write_text(text)
    with pytest.raises(InputError) as text:
        report.load([tmp_path])
    assert text.value.message.startswith(f"{bad} {why}")


@pytest.mark.parametrize("key", ["accuracy", "axis", "shares", "slices", "kernels", "hardware", "stop_at", "label"])
def test_a_record_with_a_key_missing_is_named(tmp_path: Path, key: str) -> None:
    partial = record([0.9])
    (partial if key in partial else partial["trial"]).pop(key)
    keep([partial], tmp_path)
    with pytest.raises(InputError, match=f"trial-{partial['digest']}.json is not the record of a trial"):
        report.load([tmp_path])


VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that elements are closed in the order in which they were opened, and keeps tables and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture
def records() -> list[dict[str, Any]]:
    result = [record([0.98, 0.7], lr=lr, seed=seed) for lr in (1e-3, 3e-3) for seed in range(2)]
    result += [record([0.5, 0.03], label="<b>bold & brave</b>|x", width=width) for width in (64, 128)]
    return [*result, record([1.0, 1.0], task="parity")]


def test_the_page_is_self_contained(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    page, *others = report.write(records, tmp_path / "new" / "folder")
    assert [path.name for path in others] == ["report.csv", "report.md", "recall-by-state.svg"]
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    for needle in ("http", "<script", "<b>", "@import", "url("):
        assert needle not in text
    assert "&lt;b&gt;bold &amp; brave&lt;/b&gt;|x width=64" in text
    assert not [tag for tag, attributes in parsed.tags if {"src", "href"} & attributes.keys()]
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_the_figures_and_their_sources(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    text = report.write(records, tmp_path)[0].read_text(encoding="utf-8")
    rows = Page(text).rows
    assert ["", "mqar", "parity"] in rows  # the overview
    assert ["delta", "84.0% ± 0.0", "100.0%"] in rows
    heads = ["model", "lr", "accuracy", "pairs 4", "pairs 8", "seeds"]
    assert [*heads, "state bytes", "parameters", "steps", "seconds", "ended"] in rows
    cost_cells = ["2", "10,496", "13,348", "100", "12.5", "budget"]
    assert ["delta", "0.001", "84.0% ± 0.0", "98.0% ± 0.0", "70.0% ± 0.0", *cost_cells] in rows
    assert "Chance is 3.1%." in text
    assert "A trial is solved, and stops, once it tests at 0.99 or above." in text
    for text in ("0.1.0", "2.9.0", "A &lt;small&gt; processor (cpu)", "rms_norm: native/torch", records[0]["digest"]):
        assert text in text


def test_the_charts(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    text = report.write(records, tmp_path)[0].read_text(encoding="utf-8")
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]
    text = [chart.get("aria-label") for chart in charts]
    assert text == [
        "mqar, quick preset: accuracy by pairs",
        "mqar, quick preset: accuracy against bytes of state",
        "parity, quick preset: accuracy by pairs",
        "parity, quick preset: accuracy against bytes of state",
    ]
    by_axis, by_state = ([title.text for title in chart.iter("title")] for chart in charts[:2])
    assert "delta, pairs 8: 70.0% ± 0.0" in by_axis
    assert "chance, 3.1%" in by_axis
    assert "<b>bold & brave</b>|x width=128: 26.5% with 20,992 bytes" in by_state
    texts = [element.text for element in charts[1].iter("text")]
    assert {"8 KiB", "16 KiB", "32 KiB", "0%", "100%", "delta"} <= set(texts)


def test_a_higher_accuracy_is_drawn_higher_and_a_larger_state_further_right() -> None:
    result = benches(report.summaries([record([0.2, 0.2], width=64), record([0.8, 0.8], width=256)]))
    text = accuracy_by_state(result[0], style_numbers(result))
    places = {
        text.split(":")[0]: (float(x), float(y))
        for x, y, text in re.findall(r'translate\(([\d.]+) ([\d.]+)\)" d="[^"]*"><title>([^<]*bytes)</title>', text)
    }
    small, large = places["delta width=64"], places["delta width=256"]
    assert large[0] > small[0]
    assert large[1] < small[1]


def test_markdown_has_tables_of_equal_width(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    text = report.write(records, tmp_path)[2].read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## Overview",
        "## mqar, quick preset",
        "## parity, quick preset",
    ]
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        lines = table.splitlines()
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(re.findall(r"(?<!\\)\|", lines[0]))}
        assert set(lines[1]) <= set("| -:")
    assert "| &lt;b>bold &amp; brave&lt;/b>\\|x width=64 |" in text
    assert "7 trials; synthe 0.1.0, torch 2.9.0; A &lt;small> processor (cpu)." in text


@pytest.mark.parametrize(("chance", "text"), [(1 / 4096, "0.024%"), (0.125, "12%"), (0.999, "100%"), (1.0, "100%")])
def test_chance_as_text(chance: float, text: str) -> None:
    assert chance_text(chance) == text


def test_labels_of_several_lines_or_none_are_a_word_in_a_line(tmp_path: Path) -> None:
    records = [record([0.9], label=label) for label in ("a\nb", " ", "")]
    assert [row.label for row in report.summaries(records)] == ["a b", "model", "model"]
    lines = report.write(records, tmp_path)[2].read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 3


def test_many_models_have_a_line_of_their_own_each() -> None:
    result = benches(report.summaries([record([0.5, 0.5], label=f"model-{i:02}") for i in range(40)]))
    chart = ElementTree.fromstring(accuracy_by_axis(result[0], style_numbers(result)))
    height = float(str(chart.get("viewBox")).split()[3])
    names = sorted(float(str(text.get("y"))) for text in chart.iter("text") if str(text.text).startswith("model-"))
    assert len(names) == 40
    assert all(b - a >= 14 for a, b in pairwise(names))
    assert names[0] >= 0
    assert names[-1] <= height
