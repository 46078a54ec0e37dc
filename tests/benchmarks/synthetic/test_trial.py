"""One trial: it learns, it is repeatable, and its record says what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from synthe_core import state as states
from synthe_core.benchmarks.synthetic.plan import layer_model, parse_sweep, trials
from synthe_core.benchmarks.synthetic.sweep import sweep
from synthe_core.benchmarks.synthetic.trial import Trial, run
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Measurement, Metric, Notice, Result
from synthe_core.model.language_model import LanguageModel

SMALL = {"vocab": 16, "length": 16, "pairs": 2}


def small(layer="delta", steps=3, seed=0, **more):
    return Trial(
        task="mqar", settings=SMALL, model=layer_model(layer, 32, {}), label=layer, steps=steps, seed=seed, **more
    )


def record(trial):
    *_, last = run(trial)
    assert isinstance(last, Result)
    return dict(last.values)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    def losses(seed):
        return [e.values["loss"] for e in run(small(steps=4, seed=seed)) if isinstance(e, Metric)]

    assert len(losses(0)) == 4
    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_delta_solves_a_small_mqar_and_stops_there():
    result = record(small(steps=400, lr=1e-2, tests=20))
    assert result["accuracy"] >= 0.99
    assert result["ended"] == "solved"
    assert result["steps"] < 400
    assert result["chance"] == pytest.approx(1 / 8)


def test_the_record_has_parameters_state_bytes_and_a_digest():
    trial = small("kalman", steps=2)
    result = record(trial)
    model = LanguageModel(trial.model, 16)
    assert [entry.type for entry in trial.model.block] == ["conv", "kalman"]
    assert result["parameters"] == model.parameter_count()
    assert result["state_bytes"] == states.nbytes(model(torch.zeros(1, 16, dtype=torch.int64))[1].blocks)
    assert result["tokens"] == 2 * trial.batch * 16
    assert result["digest"] == trial.digest() == trial.model_copy(update={"label": "other"}).digest()
    assert result["digest"] != small("kalman", steps=3).digest()
    assert result["ended"] == "budget"
    assert {share["settings"]["pairs"] for share in result["shares"]} == {2}
    json.dumps(result)


def test_an_interrupted_sweep_resumes_with_finished_trials(tmp_path):
    planned = [small(seed=seed, steps=2) for seed in range(3)]

    def stopped():
        from threading import Event

        stop = Event()
        for event in sweep(planned, out=tmp_path, stop=stop):
            if isinstance(event, Measurement):
                stop.set()

    with pytest.raises(Interrupted):
        stopped()
    stored = sorted(tmp_path.glob("trial-*.json"))
    assert len(stored) == 1
    before = stored[0].read_bytes()
    events = list(sweep(planned, out=tmp_path))
    assert "1 of 3 trials are done already" in next(e.message for e in events if isinstance(e, Notice))
    assert [e.case for e in events if isinstance(e, Measurement)] == ["delta seed=1", "delta seed=2"]
    assert stored[0].read_bytes() == before
    assert len(events[-1].values["trials"]) == 3
    stored[0].write_text("{")  # a damaged record is made again
    assert len(list(sweep(planned, out=tmp_path))[-1].values["trials"]) == 3
    assert json.loads(stored[0].read_text())["accuracy"] == json.loads(before)["accuracy"]


@pytest.mark.parametrize(("enough", "reached"), [(0.0, [1, 2, 3, 3]), (2.0, [0, 0, 0, 0])])
def test_the_next_level_starts_once_the_current_one_is_learned(monkeypatch, enough, reached):
    """A level takes at least ten steps. Tests are of the last level; a notice reports a trial that did not reach it."""
    monkeypatch.setattr("synthe_core.benchmarks.synthetic.trial.LEARNED", enough)
    monkeypatch.setattr("synthe_core.tasks.state_tracking.LEVELS", 3)
    model = layer_model("delta", 32, {}, blocks=1)
    settings = {"group": "Z12", "grow": True, "length": 8}
    trial = Trial(task="state-tracking", settings=settings, model=model, steps=40, tests=4, batch=4, stop_at=1)
    events = list(run(trial))
    assert [e.values["level"] for e in events if isinstance(e, Metric)] == reached
    assert (events[-1].values["level"], events[-1].values["levels"]) == (reached[-1], 3)
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert [("level 0 of 3" in notice) for notice in notices] == ([] if reached[-1] == 3 else [True])


def test_a_diverging_trial_is_reported_and_skipped(tmp_path, monkeypatch):
    real = LanguageModel.loss

    def broken(self, *args):
        loss, after = real(self, *args)
        return loss._replace(total=loss.total * float("nan")), after

    monkeypatch.setattr(LanguageModel, "loss", broken)
    events = list(sweep([small(steps=2)], out=tmp_path))
    assert any("not finite" in e.message for e in events if isinstance(e, Notice))
    assert events[-1].values["trials"] == []
    assert not list(tmp_path.glob("trial-*.json"))


def test_every_combination_is_planned():
    result = trials(
        "mqar", layers=["delta", "conv,attention"], swept=parse_sweep(["lr=1e-3,3e-3", "width=32,64"]), seeds=2
    )
    assert len({trial.digest() for trial in result}) == len(result) == 2 * 2 * 2 * 2
    hybrid = next(trial for trial in result if trial.label == "conv,attention")
    assert [entry.type for entry in hybrid.model.block] == ["conv", "attention"]
    assert {trial.model.block[0].heads for trial in result if trial.label == "delta"} == {1, 2}
    assert {trial.model.blocks for trial in result} == {2}
    deeper = trials("mqar", layers=["delta"], swept=parse_sweep(["blocks=1,3"]))
    assert [trial.model.blocks for trial in deeper] == [1, 3]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"task": "mqr"}, "did you mean 'mqar'"),
        ({"layers": ["delat"]}, "did you mean 'delta'"),
        ({"settings": {"pears": 3}}, "did you mean 'pairs'"),
        ({"settings": {"pairs": 40}}, "smallest length"),
        ({"learner": {"head": 3}}, "did you mean 'heads'"),
        ({"swept": {"lrr": [1.0]}}, "did you mean 'lr'"),
        ({"learner": {"heads": "many"}}, "schema"),
    ],
)
def test_invalid_settings_are_refused_before_any_work(options, message):
    with pytest.raises(InputError) as failed:
        trials(**({"task": "mqar", "layers": ["delta"]} | options))
    assert message in str(failed.value.hint)
