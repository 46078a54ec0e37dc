"""Charts as SVG, PNG and text."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest

from synthe_core.charts import png as png_module
from synthe_core.charts.chart import Axis, Chart, Series, tick_text, ticks
from synthe_core.charts.png import png
from synthe_core.charts.svg import svg
from synthe_core.charts.terminal import text
from synthe_core.errors import InputError


def chart(*series: Series, log: bool = True) -> Chart:
    return Chart("loss & size", Axis("tokens", log), Axis("loss"), list(series))


MARKS = Series("delta", [(1e3, 3.0), (1e4, 2.0), (1e5, 1.0)])
LINE = Series("fit <1>", [(1e3, 3.0), (1e5, 1.0)], "line", 1)
BAND = Series("", [(1e3, 2.9), (1e5, 0.9), (1e5, 1.1)], "band", 1)


def test_an_svg_is_whole_and_has_everything() -> None:
    root = ElementTree.fromstring(svg([chart(MARKS, LINE, BAND), chart(MARKS)]))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss & size", "delta", "fit <1>", "tokens", "loss", "10k"} <= set(texts)
    classes = [each.get("class") for each in root.iter("{http://www.w3.org/2000/svg}path")]
    assert classes.count("mark") == 2 * (3 + 1)  # points and legend
    assert classes.count("line") == 2 and classes.count("band") == 1


def test_a_terminal_has_a_letter_where_a_point_is() -> None:
    lines = text(chart(MARKS, LINE), width=21, height=11).splitlines()
    rows = [line.partition("|")[2] for line in lines if "|" in line]
    places = [(row, column) for row, line in enumerate(rows) for column, letter in enumerate(line) if letter == "a"]
    assert places == [(0, 1), (5, 10), (10, 19)]
    assert lines[0] == "loss & size"
    assert any(line.strip() == "a delta" for line in lines)
    assert any("10k" in line for line in lines)


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    strange = Series("x", [(0.0, 1.0), (-1.0, 1.0), (1.0, math.nan), (math.inf, 1.0), (10.0, 1.0)])
    [(_, points)] = chart(strange).visible()
    assert points == [(10.0, 1.0)]
    with pytest.raises(ValueError, match="nothing to draw"):
        svg([chart(Series("x", [(0.0, 1.0)]))])
    assert chart(strange).ranges()[0][0] < 10 < chart(strange).ranges()[0][1]  # one point has a range too


@pytest.mark.parametrize(
    ("bounds", "log", "expected"),
    [
        ((1e3, 1e6), True, [1e3, 1e4, 1e5, 1e6]),
        ((3e4, 3e5), True, [5e4, 1e5, 2e5]),
        ((0.0, 1.0), False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((1.95, 2.31), False, [2.0, 2.1, 2.2, 2.3]),
    ],
)
def test_ticks_are_round(bounds: tuple[float, float], log: bool, expected: list[float]) -> None:
    assert ticks(bounds, log) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (2.5, "2.5"), (3e5, "300k"), (2e9, "2G"), (1e12, "1e12"), (1e-5, "1e-5"), (200, "200")],
)
def test_ticks_are_short(value: float, shown: str) -> None:
    assert tick_text(value) == shown


def test_a_png_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="a PNG needs matplotlib"):
        png([chart(MARKS)])


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_png_is_one() -> None:
    content = png([chart(MARKS, LINE, BAND)])
    assert content.startswith(b"\x89PNG") and len(content) > 5000
    assert "matplotlib.pyplot" not in sys.modules  # which would look for a display


def test_a_long_legend_makes_its_panel_higher() -> None:
    def height(count: int) -> int:
        chart = Chart("many", Axis("x"), Axis("y"))
        chart.series.extend(Series(f"model {i}", [(i, i + 1.0)], "marks", i) for i in range(count))
        root = ElementTree.fromstring(svg([chart]))
        lowest = max(float(each.get("y", 0)) for each in root.iter("{http://www.w3.org/2000/svg}text"))
        size = int(root.get("viewBox", "").split()[3])
        assert lowest < size
        return size

    assert height(2) == height(10) < height(30)
