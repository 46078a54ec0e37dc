"""Points of tables: columns under several names, what follows from C = 6 N D, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.scaling.points import Point, by_learner, read_table, without_highest


def table(folder: Path, text: str) -> Path:
    path = folder / "points.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("parameters,tokens,loss\n100,20,3.5\n", Point(100, 20, 3.5, 12000)),
        ("Model Size,Training FLOP,loss\n100,12000,3.5\n", Point(100, 20, 3.5, 12000)),
        ("C,D,L,architecture\n12000,20,3.5,delta\n", Point(100, 20, 3.5, 12000, "delta")),
        ("\ufeffN , D,flops,loss\n1e2,2e1,9000,3.5\n", Point(100, 20, 3.5, 9000)),
    ],
)
def test_columns_have_several_names(tmp_path: Path, text: str, point: Point) -> None:
    assert read_table(table(tmp_path, text)) == [point]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters,tokens\n1,2\n", "has no column of loss"),
        ("parameters,loss\n1,2\n", "has no column of two of parameters, tokens and flops"),
        ("parameters,tokens,loss\n1,2,3\n1,many,3\n", "points.csv:3: tokens is 'many'"),
        ("parameters,tokens,loss\n1,-2,3\n", "points.csv:2: tokens is '-2'"),
        ("parameters,tokens,loss\n1,2,nan\n", "points.csv:2: loss is 'nan'"),
        ("parameters,tokens,loss\n1,2\n", "points.csv:2: loss is ''"),
        ("parameters,tokens,loss\n", "has no rows"),
        ("", "has no column"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_table(table(tmp_path, text))
    assert message in caught.value.message


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no CSV table"):
        read_table(tmp_path / "binary.csv")


def test_points_are_grouped_and_dropped() -> None:
    points = [Point(1, 1, loss, 6, name) for loss, name in ((3.0, "a"), (5.0, "b"), (4.0, "a"), (5.0, "a"))]
    assert {name: len(group) for name, group in by_learner(points).items()} == {"a": 3, "b": 1}
    assert without_highest(points, 0) == points
    assert without_highest(points, 2) == [points[0], points[2]]
    with pytest.raises(InputError, match="leaves none"):
        without_highest(points, 4)
