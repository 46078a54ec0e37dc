"""A chart of recall against bytes of state, over the tasks that ask what was bound to a key."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from synthe_core.benchmarks.synthetic.summary import Bench, Summary
from synthe_core.charts.chart import Axis, Chart, Series

RECALL = ("mqar", "recall-overwrite")


def recall_by_state(benches: Iterable[Bench]) -> Chart | None:
    """A mark for each model at its best setting: the mean accuracy over the recall tasks, and the state of one sequence
    at the longest tested length. Models without a state, or without one of the tasks, are left out. None without any.
    """
    chosen = [bench for bench in benches if bench.task in RECALL]
    by_model: dict[str, list[Summary]] = {}
    for bench in chosen:
        for row in bench.best:
            by_model.setdefault(row.name, []).append(row)
    rows = {
        name: (max(row.state_bytes for row in own), fmean(row.mean for row in own), own)
        for name, own in by_model.items()
        if len(own) == len(chosen) and all(row.state_bytes for row in own)
    }
    if not rows:
        return None
    tasks = " and ".join(dict.fromkeys(bench.task for bench in chosen))
    chart = Chart(
        f"{tasks}: accuracy against the state", Axis("bytes of state of one sequence", True), Axis("accuracy")
    )
    for style, (name, (size, mean, own)) in enumerate(sorted(rows.items(), key=lambda each: -each[1][1])):
        chart.series.append(Series(name, [(size, mean)], "marks", style))
        if all(row.std is not None for row in own):
            deviation = fmean(row.std for row in own if row.std is not None)
            chart.series.append(Series("", [(size, mean - deviation), (size, mean + deviation)], "line", style))
    return chart
