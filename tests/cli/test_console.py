"""The three renderers of the same events."""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from synthe_cli import console, figures
from synthe_cli.console import JsonRenderer, PlainRenderer
from synthe_cli.live import LiveRenderer
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Event, Measurement, Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.units import format_count, format_size

STORY: list[Event] = [
    Notice("a model of 1.6M parameters"),
    Progress("packing", 50, 200, "B", 3.0),
    Progress("packing", 200, 200, "B"),
    Progress("training", 1, 4, "steps", 90.0),
    Metric(
        1, "train", {"loss": 5.5, "bits_per_byte": 7.9, "lr": 3e-3, "tokens_per_second": 12345.0, "memory": 2.0**30}
    ),
    Metric(2, "train", {"loss": math.nan, "grad_norm": 0.5, "strange": 1.25}),
    Notice("[b]a loss[/b] is not finite", "warning"),
    Metric(2, "validation", {"bits_per_byte": 2.5, "perplexity": 5.66}),
    Sample(2, "def f():\n\x1b[31m[red]x"),
    Saved(Path("runs/a/checkpoints/step-2"), 2),
]
END = Result({"bits_per_byte": 2.5}, Path("runs/a"))


def emit_all(renderer: console.Renderer) -> None:
    with renderer as shown:
        for event in STORY:
            shown.show(event)
        shown.result(END)


def test_json_lines_hold_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    emit_all(JsonRenderer())
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["event"] for e in events] == [
        *("notice", "progress", "progress", "progress"),
        *("metric", "metric", "notice", "metric", "sample", "saved", "result"),
    ]  # of one task's progress events at once, the first and the one that ends it are kept
    assert events[5]["values"] == {"loss": None, "grad_norm": 0.5, "strange": 1.25}
    assert events[-1] == {"event": "result", "values": {"bits_per_byte": 2.5}, "path": "runs/a"}
    assert err == ""


def test_plain_lines_hold_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    emit_all(PlainRenderer(interval=0.0))
    out, err = capsys.readouterr()
    assert out == "runs/a\n"
    assert all(c.isprintable() or c == "\n" for c in err)
    assert "packing  25%  50/200 B  3s left\n" in err
    assert "training  25%  1/4 steps  1m30s left  step 1  loss 5.500  bits/byte 7.900  lr 3.0e-03" in err
    assert "tok/s 12.3k  memory 1 GiB\n" in err
    assert "step 2  loss nan  grad 0.5  strange 1.25\n" in err
    assert "warning: [b]a loss[/b] is not finite\n" in err
    assert "validation  step 2  bits/byte 2.500  perplexity 5.66\n" in err
    assert "  | def f():\n  | \N{REPLACEMENT CHARACTER}[31m[red]x\n" in err
    assert "saved  step 2  runs/a/checkpoints/step-2\n" in err


def test_plain_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainRenderer(interval=1e9) as shown:
        for step in range(1, 101):
            shown.show(Progress("training", step, 1000, "steps"))
            shown.show(Metric(step, "train", {"loss": 1.0}))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1].endswith("step 100  loss 1.000")  # the last figures are never lost


def test_figures_of_training_are_not_printed_on_the_progress_of_validation(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainRenderer(interval=1e9) as shown:
        shown.show(Progress("train", 1, 4, "steps"))
        shown.show(Metric(2, "train", {"loss": 2.0}))
        shown.show(Progress("validate", 4, 4, "windows"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train  25%  1/4 steps", "train  step 2  loss 2.000", "validate  100%  4/4 windows"]


def test_the_live_display_is_made_of_the_same_events(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    emit_all(LiveRenderer(Console(file=terminal, force_terminal=True, width=120, color_system=None, highlight=False)))
    text = terminal.getvalue()
    assert capsys.readouterr().out == "runs/a\n"
    for part in (
        "a model of 1.6M parameters",
        "training",
        "25%",
        "1m30s left",
        "grad 0.5",
        "perplexity 5.66",
        "runs/a",
    ):
        assert part in text
    assert "[b]a loss[/b] is not finite" in text  # text of others is not markup
    assert "\N{REPLACEMENT CHARACTER}[31m[red]x" in text  # nor may it move the cursor
    assert text.rstrip("\n").count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor comes back


@pytest.mark.parametrize(
    ("term", "terminal", "expected"),
    [("xterm", True, LiveRenderer), ("dumb", True, PlainRenderer), ("xterm", False, PlainRenderer)],
)
def test_the_renderer_follows_the_terminal(
    monkeypatch: pytest.MonkeyPatch, term: str, terminal: bool, expected: type
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    assert type(choose_renderer(False)) is expected
    assert type(choose_renderer(True)) is JsonRenderer


@pytest.mark.parametrize("terminal", [True, False])
def test_a_measurement_is_a_result(capsys: pytest.CaptureFixture[str], terminal: bool) -> None:
    screen = io.StringIO()
    live = LiveRenderer(Console(file=screen, force_terminal=True, width=120))
    with live if terminal else PlainRenderer() as shown:
        shown.show(Progress("measuring", 1, 2))
        shown.show(Measurement("B=4 T=8", {"ms": 1.5, "peer": "sdpa"}))
        shown.show(Progress("measuring", 2, 2))
    assert capsys.readouterr().out == "B=4 T=8  ms 1.5  peer sdpa\n"


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = io.StringIO()
    emit_all(LiveRenderer(Console(file=terminal, force_terminal=True, width=120, highlight=False)))
    assert "\x1b[3" not in terminal.getvalue()


def test_a_library_warning_is_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with PlainRenderer():
            warnings.warn("the weather\nis bad", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the weather is bad\n"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(7), "7"),
        (format_count(999), "999"),
        (format_count(999_600), "1M"),
        (format_count(1_234_567), "1.23M"),
        (format_count(-2_500), "-2.5k"),
        (format_size(512), "512 B"),
        (format_size(1536), "1.5 KiB"),
        (figures.duration(59.6), "1m00s"),
        (figures.duration(3_700), "1h01m"),
        (figures.duration(200_000), "2d07h"),
        (figures.duration(None), "-"),
        (figures.sparkline([3, 2, 1]), "█▅▁"),
        (figures.sparkline([1.0, 1.0]), "▁▁"),
        (figures.sparkline([1.0, math.nan]), ""),
        (figures.table(["a", "n"], [["x", "10"], ["yy", "2"]]), "a    n\nx   10\nyy   2"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_share_of_skipped_operations_is_printed() -> None:
    dense = {"loss": 2.0, "flops": 3e6, "flops_dense": 3e6}
    assert console.labelled(dense) == [("loss", "2.000")]
    routed = dense | {"flops": 2.1e6, "depth": 2.5, "gate_rate": 0.105}
    assert console.labelled(routed)[1:] == [("skipped", "30%"), ("depth", "2.50"), ("gated", "10.5%")]
