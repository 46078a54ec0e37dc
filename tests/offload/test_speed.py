"""How fast a model within a given memory is: what is said before, by passes that were run or by products, and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from synthe_core.offload import speed
from synthe_core.offload.pass_times import PassTimes
from synthe_core.offload.speed import SpeedEstimate, estimate_speed, measure_speed
from tests.inference.conftest import written
from tests.offload.conftest import Open

BLOCK: list[Any] = [{"type": "attention", "heads": 4}, {"type": "mlp", "hidden": 128}]


class Clock:
    """Seconds that only passes take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("layout", [1, -1])
def test_passes_are_run_where_they_are_short(
    layout: int, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(written(tmp_path / "m", BLOCK, width=64), layout=layout)
    clock, seconds = Clock(), iter([5.0, 1.0, 2.0])
    monkeypatch.setattr(speed, "time", clock)

    def run(tokens: Tensor, state: Any) -> Tensor:
        clock.now += next(seconds)
        return model.hidden(tokens, state)[0]

    made = estimate_speed(model, run)
    assert made.passes == (1.0, 2.0) and made.tokens_per_second() == pytest.approx(1 / 1.5)
    assert "0.67 tokens/s (0.5 to 1)" in str(made)
    assert estimate_speed(model).passes == ()
    clock.now, seconds = 0.0, iter([11.0])
    assert estimate_speed(model, run).passes == (11.0,)
    monkeypatch.setattr(speed, "LONGEST", 0.0)
    assert estimate_speed(model, run).passes == ()
    measure_speed(model)
    assert "are read in each pass" in model.offload.summary


def test_more_texts_take_no_less_than_one() -> None:
    made = SpeedEstimate(1.0, (0.1, 3.0), 4, 1e9, (2.0,))
    assert [made.seconds(1), made.seconds(4)] == [2.0, 3.0]
    assert SpeedEstimate(1.0, (0.1, 3.0), 4, 1e9).seconds(1) == 1.0
    assert str(made) == "0.5 tokens/s: limited by the disk, 1.0 GB/s; 4 rows at a time give 1.3"


def test_what_passes_have_brought() -> None:
    times = PassTimes()
    assert str(times) == ""
    times.record(1, 2.0)
    assert str(times) == "0.5 tokens/s measured in 1 pass"
    for seconds in (4.0, 5.0, 9.0):
        times.record(8, seconds)
    assert str(times) == "1.6 tokens/s measured in 3 passes of 8 texts"
