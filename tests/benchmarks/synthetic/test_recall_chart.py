"""Recall against bytes of state."""

from __future__ import annotations

import pytest

from synthe_core.benchmarks.synthetic.recall_chart import recall_by_state
from synthe_core.benchmarks.synthetic.summary import benches, summaries
from synthe_core.charts.svg import svg
from tests.benchmarks.synthetic.trials import record


def chart_of(records):
    return recall_by_state(benches(summaries(records)))


def test_the_mean_over_both_tasks_at_the_best_setting() -> None:
    records = [
        *(record([accuracy], lr=lr, seed=seed) for lr, accuracy in ((1e-3, 0.5), (3e-3, 0.9)) for seed in range(2)),
        *(record([accuracy], task="recall-overwrite", seed=seed) for seed, accuracy in enumerate((0.6, 0.8))),
        record([1.0], label="of one task only"),
        record([1.0], task="parity"),
    ]
    chart = chart_of(records)
    assert chart is not None and [each.name for each in chart.series] == ["delta", ""]
    ((size, accuracy),) = chart.series[0].points
    assert size == 164 * 64 and accuracy == pytest.approx((0.9 + 0.7) / 2)
    (_, low), (_, high) = chart.series[1].points
    assert (high - low) / 2 == pytest.approx((0 + 0.02**0.5) / 2)
    assert "delta" in svg([chart]) and chart.title == "mqar and recall-overwrite: accuracy against the state"


def test_of_one_task_too_and_none_without() -> None:
    chart = chart_of([record([0.5])])
    assert chart is not None and [each.name for each in chart.series] == ["delta"]
    assert chart_of([record([0.5], task="parity")]) is None
